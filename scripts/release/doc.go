// Package release has the tests of what scripts/release.sh makes. scripts/release-test.sh runs them.
package release
