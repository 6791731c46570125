package nftables

import "time"

// formatHour writes seconds since midnight, UTC, in local time.
func formatHour(seconds uint64) string {
	_, offset := time.Now().Zone()
	t := time.Unix(int64(seconds)+int64(offset), 0).UTC()
	if t.Second() != 0 {
		return t.Format("15:04:05")
	}
	return t.Format("15:04")
}

// formatDate writes nanoseconds since 1970 in local time.
func formatDate(nanoseconds uint64) string {
	return time.Unix(int64(nanoseconds/uint64(time.Second)), 0).Format(time.DateTime)
}
