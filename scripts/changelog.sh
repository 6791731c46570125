#!/bin/sh
# changelog.sh VERSION: prints the version's section of CHANGELOG.md, without its heading. v1.2.3-rc.1 has the section 1.2.3.
set -eu
cd "$(dirname "$0")/.."
number=${1#v}
awk -v number="${number%%-*}" '
	/^## / { on = $2 == number; found = found || on; next }
	on
	END { exit !found }
' CHANGELOG.md
