//go:build faults

package cniplugin_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/detour-cni/detour/pkg/nettest"
)

// newDisk is newAttachment with a state folder and a folder of logs on filesystems of 40 pages and 40 inodes, which only the plugin
// sees.
func newDisk(t *testing.T) *attachment {
	a := newAttachment(t, meshedPod(), meshConfig)
	a.mounts = nettest.StartMounts(t, `for d in "$1" "$2"; do mkdir "$d"; mount -t tmpfs -o size=160k,nr_inodes=40 tmpfs "$d"; done`, a.path("state"), a.path("logs"))
	return a
}

// disk runs a shell script where the plugin sees the files, in the attachment's folder.
func (a *attachment) disk(script string) {
	a.t.Helper()
	if err := a.mounts.Shell(`cd "$1"; record=state/attachments/net/c1@eth0.json; `+script, a.dir); err != nil {
		a.t.Fatal(err)
	}
}

// noState expects that the state folder holds no record and no lock.
func (a *attachment) noState() {
	a.t.Helper()
	for _, pattern := range []string{"attachments/*/*", "attachments/*.tmp", "namespaces/*"} {
		if left, _ := filepath.Glob(a.mounts.Path(a.path("state/" + pattern))); len(left) > 0 {
			a.t.Errorf("left: %q", left)
		}
	}
}

// fill takes the blocks of a filesystem, crowd its inodes.
const (
	fill  = `cat /dev/zero >%/fill 2>&1 || true; `
	crowd = `i=0; while touch %/inode$i 2>&1; do i=$((i+1)); done; `
)

// stateFolders are the ways in which a state folder can't be used, and what then is in an error.
var stateFolders = map[string]struct{ spoil, restore, says string }{
	"full":                 {strings.ReplaceAll(fill, "%", "state"), "rm state/fill", "no space left on device: make room on that filesystem"},
	"without inodes":       {strings.ReplaceAll(crowd, "%", "state"), "rm state/inode*", "no space left on device: make room on that filesystem"},
	"read-only":            {"mount -o remount,ro state", "mount -o remount,rw state", "read-only file system: mount that filesystem read-write"},
	"a file":               {"umount -l state; rmdir state; : >state", "rm state", "not a directory: make it a folder"},
	"a link to nowhere":    {"umount -l state; rmdir state; ln -s none/state state", "rm state", "state: file exists: remove what is in its place"},
	"a link to itself":     {"umount -l state; rmdir state; ln -s state state", "rm state", ": "},
	"gone":                 {"umount -l state; rmdir state", ":", ""},
	"a link to a folder":   {"umount -l state; rmdir state; mkdir other; ln -s other state", ":", ""},
	"of another user":      {"chown 65534 state; chmod 0 state", ":", ""},
	"one that all may use": {"chmod 777 state", ":", ""},
}

// A meshed pod needs a record, and does not start without one. A pod that is left alone does, and every pod ends.
func TestAStateFolderThatCannotBeUsed(t *testing.T) {
	for name, c := range stateFolders {
		works := c.says == ""
		verb := func(a *attachment, verb string, code uint) {
			a.t.Helper()
			if works {
				a.must(verb)
			} else {
				a.fails(verb, code, c.says, a.path("state"))
			}
		}
		for _, mark := range []bool{false, true} { // without and with folders of an earlier pod
			t.Run(name+map[bool]string{false: "", true: ", after another pod"}[mark], func(t *testing.T) {
				t.Parallel()
				a := newDisk(t)
				if mark {
					a.must("ADD")
					a.must("DEL")
				}
				a.disk(c.spoil)
				verb(a, "STATUS", 50)
				verb(a, "ADD", 999)
				if !works {
					a.noRules()
				}
				a.must("DEL")
				a.noRules()
				a.conf["excludeNamespaces"] = []string{"shop"}
				a.must("ADD")
				a.must("CHECK")
				a.must("DEL")
				delete(a.conf, "excludeNamespaces")
				a.disk(c.restore)
				a.must("STATUS")
				a.must("ADD")
				a.must("CHECK")
				a.must("DEL")
				a.noRules()
				a.must("GC")
				a.noState()
			})
		}
		t.Run(name+", while the pod runs", func(t *testing.T) {
			t.Parallel()
			a := newDisk(t)
			a.must("ADD")
			a.disk(c.spoil)
			a.must("CHECK")
			a.must("DEL")
			a.noRules()
			a.disk(c.restore)
			a.must("GC")
			a.noState()
		})
	}
}

// Whatever has become of a pod's record, CHECK says so or does without, and ADD and DEL leave what they should.
func TestARecordThatCannotBeRead(t *testing.T) {
	const future = `{"version": 2, "network": "net", "containerID": "c1", "ifName": "eth0", "outcome": %s, "backend": "ebpf", "families": ["IPv4"], "payload": {"x": 1}}`
	for name, c := range map[string]struct{ spoil, says string }{
		"half":             {`head -c 100 $record >half; cp half $record`, ""},
		"empty":            {`: >$record`, ""},
		"huge":             {`truncate -s 1T $record`, ""},
		"no JSON":          {`echo '<record>' >$record`, ""},
		"of another shape": {`echo '["net"]' >$record`, ""},
		"null":             {`echo null >$record`, ""},
		"of the future":    {`echo '` + strings.Replace(future, "%s", `"programmed"`, 1) + `' >$record`, "the pod was programmed with ebpf, which this version of detour doesn't know"},
		"beyond":           {`echo '` + strings.Replace(future, "%s", `"postponed"`, 1) + `' >$record`, ""},
		"a folder":         {`rm $record; mkdir $record`, ""},
		"a FIFO":           {`rm $record; mkfifo $record`, ""},
		"a link to itself": {`ln -sf c1@eth0.json $record`, ""},
		"without its lock": {`rm state/namespaces/*`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, again := range []bool{false, true} {
				a := newDisk(t)
				a.must("ADD")
				want := a.holds()
				a.disk(c.spoil)
				if c.says == "" {
					a.must("CHECK")
					a.shell("iptables -t nat -F PROXY_OUTPUT")
					a.fails("CHECK", 101, "rule 1 of PROXY_OUTPUT is missing")
				} else {
					a.fails("CHECK", 999, c.says)
				}
				a.must("STATUS")
				if again && name == "a folder" {
					a.fails("ADD", 999, "file exists: remove what is in its place")
				} else if again {
					a.must("ADD")
					a.must("CHECK")
					a.same("ADD", want)
				}
				a.must("DEL")
				a.noRules()
				a.must("GC")
				a.noState()
			}
		})
	}
}

// A log is no reason to keep a pod from starting or ending, nor to wait.
func TestALogThatCannotBeWritten(t *testing.T) {
	for name, spoil := range map[string]string{
		"full":                        ": >logs/log; " + strings.ReplaceAll(fill, "%", "logs"),
		"without inodes":              strings.ReplaceAll(crowd, "%", "logs"),
		"read-only":                   "mount -o remount,ro logs",
		"a FIFO that nobody reads":    "mkfifo logs/log",
		"a FIFO that somebody stalls": "mkfifo logs/log; sleep 1000 <>logs/log >/dev/null 2>&1 & dd if=/dev/zero of=logs/log bs=4096 oflag=nonblock 2>/dev/null || true",
		"a folder":                    "mkdir logs/log",
		"a link to itself":            "ln -s log logs/log",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := newDisk(t)
			a.conf["logFile"] = a.path("logs/log")
			a.disk(spoil)
			for _, verb := range []string{"ADD", "DEL"} {
				cmd := a.command(verb)
				var said strings.Builder
				cmd.Stderr = &said
				if out, err := cmd.Output(); err != nil {
					t.Errorf("%s: %v: %s", verb, err, out)
				}
				if !strings.Contains(said.String(), `"event":"`+strings.ToLower(verb)+"-") {
					t.Errorf("%s: the line is lost: %q", verb, &said)
				}
			}
		})
	}
}

// A credential that can't be read is named, within the deadline, and ends every pod.
func TestACredentialThatCannotBeRead(t *testing.T) {
	for _, file := range []string{"kubeconfig", "token"} {
		for name, c := range map[string]struct{ spoil, says string }{
			"missing":          {`rm "$1/%"`, "no such file or directory"},
			"empty":            {`: >"$1/%"`, map[string]string{"kubeconfig": "it names no current context", "token": "is empty"}[file]},
			"huge":             {`truncate -s 1T "$1/%"`, "it is too large"},
			"a FIFO":           {`rm "$1/%"; mkfifo "$1/%"`, "it is no regular file: put one in its place"},
			"a folder":         {`rm "$1/%"; mkdir "$1/%"`, "it is no regular file: put one in its place"},
			"a link to itself": {`ln -sf % "$1/%"`, "too many levels of symbolic links"},
		} {
			t.Run(file+"/"+name, func(t *testing.T) {
				t.Parallel()
				a := newAttachment(t, meshedPod(), meshConfig)
				apiServer(t, a, nil)
				a.conf["timeout"] = "1m"
				a.must("ADD")
				if out, err := exec.Command("sh", "-ec", strings.ReplaceAll(c.spoil, "%", file), "sh", a.dir).CombinedOutput(); err != nil {
					t.Fatalf("%v: %s", err, out)
				}
				a.fails("STATUS", 50, c.says, a.path(file))
				a.must("CHECK")
				a.must("DEL")
				a.fails("ADD", 999, c.says, a.path(file))
				a.must("DEL")
				a.untouched()
				if err := os.RemoveAll(a.path(file)); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
}
