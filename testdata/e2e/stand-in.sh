#!/busybox sh
# Stands in for detourctl where a test is about kubectl detour alone: it says how it was called, on standard output and, marked, on
# standard error, and does what its flags say.
echo "called: $*"
printf '\036user %s\n' "$(/busybox id -u)"
for flag; do
	case $flag in
		--exit=*) exit "${flag#--exit=}" ;;
		--watch)
			trap 'exit 0' TERM
			while :; do
				echo "watching"
				/busybox sleep 0.2
			done
			;;
	esac
done
