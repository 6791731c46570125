package testcase

import (
	"strings"
	"testing"

	"golang.org/x/tools/txtar"
)

func TestAScenarioThatNobodyWouldLookAtIsRefused(t *testing.T) {
	for text, want := range map[string]string{
		"-- pod.yaml --\nx\n-- want.skip --\nx\n":                    "",
		"-- pod.yaml --\nx\n-- packet --\nx\n":                       `section "packet" is none of`,
		"-- pod.yaml --\nx\n-- want.skip --\nx\n-- packets --\nx\n":  "it has packets, but",
		"-- pod.yaml --\nx\n-- want.error --\nx\n-- packets --\nx\n": "it has packets, but",
		"-- meshconfig.yaml --\nx\n-- want.skip --\nx\n":             "it has no section pod.yaml",
	} {
		err := Case{archive: txtar.Parse([]byte(text))}.check()
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}
