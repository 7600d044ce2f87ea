package journal

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"sync"
	"time"
)

// A Cutover is a processor's word that its next business day begins.
type Cutover struct {
	Endpoint string
	Day      string // DE 15: MMDD, or YYMMDD (ISO 8583:1993); "" if it does not say which
}

// An Advanced is what a Cutover came to: the endpoint's business dates before and after it. They are the same if it was a repeat.
type Advanced struct {
	From string // "": none was known
	To   string
}

// ErrBusinessDate is the error of Advance for a day that cannot be the next one. Nothing was written.
var ErrBusinessDate = errors.New("business date is none, goes back, or is too far ahead")

// Advance records that a business day of an endpoint has begun. From then on each record bears its date. Without a year, the nearest one is
// meant. A cutover to the date that is current changes nothing, and neither does one that names no day and comes within shortestDay of the
// last: it is that one's repeat. Else, without a day, it is the next one or, from longestDay on, the day that begins about now: cutovers were
// missed.
//
// An error wrapping ErrBusinessDate comes with what was refused; one wrapping ErrBusy means, too, that nothing was written. It waits for
// its batch whatever becomes of ctx.
func (j *Journal) Advance(ctx context.Context, c Cutover) (Advanced, error) {
	if err := ctx.Err(); err != nil {
		return Advanced{}, fmt.Errorf("recording cutover: %w", err)
	}
	if c.Endpoint == "" {
		return Advanced{}, errors.New("recording cutover: it has no endpoint")
	}
	r := &cutoverRecord{call: newCall(), Cutover: c}
	if err := j.record(r, false); err != nil {
		return r.advanced, fmt.Errorf("recording cutover of %s: %w", c.Endpoint, err)
	}
	return r.advanced, nil
}

type cutoverRecord struct {
	call
	Cutover
	advanced Advanced
}

// A businessDay is the current one of an endpoint. The zero value is none.
type businessDay struct {
	date  string // YYYY-MM-DD
	since time.Time
}

const openDaySQL = `INSERT INTO business_days (endpoint, date, began_at) VALUES (?, ?, ?) RETURNING date`

func (r *cutoverRecord) write(w *writer, at time.Time) error {
	current := w.days[r.Endpoint]
	date, possible := current.next(r.Day, at)
	r.advanced = Advanced{From: current.date, To: date}
	switch {
	case !possible:
		r.refused = ErrBusinessDate
		return nil
	case date == current.date:
		return nil
	}
	if _, err := w.openDay.one(r.Endpoint, date, at.UnixMicro()); err != nil {
		return err
	}
	w.days[r.Endpoint] = businessDay{date, at} // if the batch fails, the journal has failed
	return nil
}

func (r *cutoverRecord) done(j *Journal, err error) {
	if err == nil && r.refused == nil {
		j.days.set(r.Endpoint, r.advanced.To)
	}
	r.answer(err)
}

// businessDates are the current ones of endpoints as they were committed, for who may not wait for the writer.
type businessDates struct {
	mu sync.Mutex
	of map[string]string // by endpoint; guarded by mu
}

func (d *businessDates) set(endpoint, date string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.of[endpoint] = date
}

// Opens reports whether a day that an endpoint's processor names is a later one than the current, or the first: one for Advance, which may
// still refuse it. It reads memory alone.
func (j *Journal) Opens(endpoint, day string) bool {
	named, exists := nearest(day, time.Now().UTC())
	j.days.mu.Lock()
	defer j.days.mu.Unlock()
	return exists && named.Format(time.DateOnly) > j.days.of[endpoint]
}

// SetBusinessDate puts a date (YYYY-MM-DD) in the place of an endpoint's current one, as a person says: also one that is earlier. Later ones
// are forgotten; records that bear them stay as they are. The next cutover counts from there.
//
// An error wrapping ErrCorrection or ErrBusy means that nothing was written. It waits for its batch whatever becomes of ctx.
func (j *Journal) SetBusinessDate(ctx context.Context, endpoint, date string) (Advanced, error) {
	err := ctx.Err()
	day, errDate := time.Parse(time.DateOnly, date)
	switch {
	case err != nil:
	case endpoint == "":
		err = errors.New("it has no endpoint")
	case errDate != nil || time.Until(day).Abs() > mostCorrected:
		err = ErrCorrection
	}
	r := &correctionRecord{call: newCall(), endpoint: endpoint, advanced: Advanced{To: date}}
	if err == nil {
		err = j.record(r, false)
	}
	if err != nil {
		return Advanced{}, fmt.Errorf("setting business date: %w", err)
	}
	return r.advanced, nil
}

// ErrCorrection is the error of SetBusinessDate for what can only be a slip of the hand.
var ErrCorrection = errors.New("business date is no date, or more than 31 days from today")

const mostCorrected = 31 * aDay

type correctionRecord struct {
	call
	endpoint string
	advanced Advanced
}

const correctDaySQL = `INSERT INTO business_days (endpoint, date, began_at) VALUES (?, ?, ?)
ON CONFLICT (endpoint, date) DO UPDATE SET began_at = excluded.began_at`

func (r *correctionRecord) write(w *writer, at time.Time) (err error) {
	current := w.days[r.endpoint]
	r.advanced.From = current.date
	// The last cutover stays when it was: only its date was wrong. Without one, a cutover that comes now is not the repeat of any.
	since := current.since
	if current.date == "" {
		since = at.Add(-shortestDay)
	}
	// Prepared each time: it is rare.
	for _, change := range []struct {
		query string
		args  []driver.Value
	}{
		{"DELETE FROM business_days WHERE endpoint = ? AND date > ?", []driver.Value{r.endpoint, r.advanced.To}},
		{correctDaySQL, []driver.Value{r.endpoint, r.advanced.To, since.UnixMicro()}},
	} {
		statement, err := w.conn.prepare(change.query, 0)
		if err != nil {
			return err
		}
		if err := errors.Join(statement.run(change.args...), statement.close()); err != nil {
			return err
		}
	}
	w.days[r.endpoint] = businessDay{r.advanced.To, since}
	return nil
}

func (r *correctionRecord) done(j *Journal, err error) {
	if err == nil {
		j.days.set(r.endpoint, r.advanced.To)
	}
	r.answer(err)
}

const (
	aDay = 24 * time.Hour // dates are at midnight UTC, where each day has one

	// shortestDay is less than any business day lasts: a processor has one cutover a day. Half a day is also the most by which cutovers of
	// two days are further apart than a day, or nearer.
	shortestDay = aDay / 2
	longestDay  = aDay + shortestDay

	// mostAhead is how far a business date may be ahead of the calendar: over the longest public holidays, nine days and a weekend's end. The
	// first that is heard may be as far behind. It is counted from the calendar alone: counted from the last date, a processor that repeats
	// its mistake would run away, and nothing goes back by itself.
	mostAhead = 10 * aDay
)

// next is the day that a cutover at a time begins. It is not possible if it is no date, before the current one, or further ahead of the
// calendar than mostAhead. A date that was left behind may be caught up with: cutovers are missed while nobody listens.
func (d businessDay) next(day string, at time.Time) (date string, possible bool) {
	at = at.UTC()
	today := at.Truncate(aDay)
	current, earliest, known := today, today.Add(-mostAhead), d.date != ""
	if known {
		var err error
		if current, err = time.Parse(time.DateOnly, d.date); err != nil {
			return d.date, false // not the writer's
		}
		earliest = current
	}
	// Processors open a day in the evening before it or in its first hours, in their own zone.
	following := at.Add(aDay / 2).Truncate(aDay)
	switch {
	case day != "":
		var exists bool
		if following, exists = nearest(day, at); !exists {
			return "", false
		}
	case known && at.Sub(d.since).Abs() < shortestDay:
		return d.date, true
	case known && (at.Sub(d.since) < longestDay || !following.After(current)):
		following = current.Add(aDay)
	}
	return following.Format(time.DateOnly), !following.Before(earliest) && !following.After(today.Add(mostAhead))
}

// nearest is the date of a month and day (MMDD) in the year that brings it nearest to a time, or of a year of the century, month and day
// (YYMMDD). It is false if there is no such day.
func nearest(text string, to time.Time) (best time.Time, exists bool) {
	switch {
	case !digitsOnly(text):
		return time.Time{}, false
	case len(text) == len("YYMMDD"):
		day, err := time.Parse("060102", text)
		return day, err == nil
	case len(text) != len("MMDD"):
		return time.Time{}, false
	}
	for year := to.Year() - 1; year <= to.Year()+1; year++ {
		day, err := time.Parse("20060102", fmt.Sprintf("%04d%s", year, text))
		if err != nil {
			continue // 0229, of most years
		}
		if !exists || day.Sub(to).Abs() < best.Sub(to).Abs() {
			best, exists = day, true
		}
	}
	return best, exists
}

// A BusinessDay is a day to which a processor counts what reached it.
type BusinessDay struct {
	Endpoint string    `json:"endpoint"`
	Date     string    `json:"date"`     // YYYY-MM-DD
	BeganAt  time.Time `json:"began_at"` // when its cutover was recorded
}

// BusinessDays returns the current one of each endpoint of which a cutover was heard, by the endpoints' names.
func (r *Reader) BusinessDays(ctx context.Context) ([]BusinessDay, error) {
	return rows(ctx, r.db, "listing business days", func(scan scanner) (BusinessDay, error) {
		var d BusinessDay
		var began int64
		err := scan(&d.Endpoint, &d.Date, &began)
		d.BeganAt = fromMicros(began)
		return d, err
	}, "SELECT endpoint, max(date), began_at FROM business_days GROUP BY endpoint ORDER BY endpoint") // began_at is of the row of the maximum
}
