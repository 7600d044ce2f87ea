package messages

import "acquirerd/specs"

// NamedNumbers are the STAN and a time of the message that this one is about, as that was sent: by its original data elements or, without
// them, its own. The time is DE 7 or, where a dialect names originals by that, DE 12; the other one is "". All are, if the data are not what
// the dialect says.
func (c *Codec) NamedNumbers(m *Message) (stan, transmissionTime, localTime string) {
	named, is := c.named(m)
	switch {
	case !is:
		return "", "", ""
	case named.MTI == "":
		if c.dialect.Reversal.Original == specs.OriginalISO93 && !m.Has(TransmissionTime) {
			return m.Get(STAN), "", m.Get(LocalTime)
		}
		return m.Get(STAN), m.Get(TransmissionTime), ""
	}
	return named.Get(STAN), named.Get(TransmissionTime), named.Get(LocalTime)
}
