// Package secret finds credentials in what programs write: tokens and private keys, real ones and those of the tests.
package secret

import "regexp"

// patterns are a token of a ServiceAccount (a JWT), a private key in PEM, the same as a Secret or a kubeconfig has it (base64), and what
// the tests take for tokens.
var patterns = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]{4,}` +
	`|-----BEGIN [A-Z ]*PRIVATE KEY` +
	`|LS0tLS1CRUdJTi(BQUklWQVRFIEtFW|BFQyBQUklWQVRFIEtFW|BSU0EgUFJJVkFURSBLRV)` +
	`|\btoken [12]\b`)

// Find returns the first credential in the text, "" if there is none.
func Find[T string | []byte](text T) string { return string(patterns.Find([]byte(text))) }
