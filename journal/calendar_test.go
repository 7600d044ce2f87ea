package journal

import (
	"testing"
	"time"
)

func moment(t *testing.T, text string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// Each cutover may be a few days ahead of the last one, and so a processor that repeats its mistake goes ahead of the calendar without end;
// nothing goes back.
func TestCutoversOfOneEveningDoNotRunAwayFromTheCalendar(t *testing.T) {
	at := moment(t, "2026-11-24T22:00:00Z")
	day := businessDay{date: "2026-11-25", since: at}
	for _, named := range []string{"1129", "1203", "1207", "1211", "1215", "", ""} {
		date, possible := day.next(named, at)
		if possible {
			day = businessDay{date, at}
		}
	}
	if day.date > "2026-12-04" { // ten days, as over the longest holidays
		t.Errorf("the business date is %s on the evening of 2026-11-24", day.date)
	}
}

// Midnight of UTC+12 (Auckland in winter, Suva) is noon UTC, where the guess of the following day jumps.
func TestACutoverADayAfterTheLastBeginsTheNextDay(t *testing.T) {
	last := moment(t, "2026-07-01T11:59:59Z")
	first, _ := businessDay{}.next("", last)
	second, _ := businessDay{first, last}.next("", last.Add(24*time.Hour+2*time.Second))
	if first != "2026-07-01" || second != "2026-07-02" {
		t.Errorf("%s is followed by %s", first, second)
	}
}

// Settlement is closed for longer than a weekend: 1 to 8 October 2026 in China, Eid al-Fitr.
func TestABusinessDayMayFollowAWeekOfHolidays(t *testing.T) {
	at := moment(t, "2026-09-30T15:00:00Z")
	if got, possible := (businessDay{"2026-09-30", at.Add(-24 * time.Hour)}).next("1008", at); !possible || got != "2026-10-08" {
		t.Errorf("got %s, %v", got, possible)
	}
}
