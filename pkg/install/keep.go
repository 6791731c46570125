package install

import (
	"context"
	"log/slog"
	"maps"
	"sync"
	"time"
)

// Counter counts what a Keeper does.
type Counter interface {
	CountInstall(part string)
	CountConflict()
}

// Keeper keeps detour installed, with the version of the mesh's configuration that the agent finds. Its methods are safe for
// concurrent use.
type Keeper struct {
	conf     Config
	netConf  NetConf
	log      *slog.Logger
	versions chan string // the newest that was found
	said     map[string]time.Time

	mu      sync.Mutex
	missing error // nil once installed
	known   bool  // whether anything is known yet
}

// NewKeeper returns a keeper of what conf says, with the net conf as its entry. It touches nothing.
func NewKeeper(conf Config, netConf NetConf, log *slog.Logger) *Keeper {
	return &Keeper{conf: conf, netConf: netConf, log: log, versions: make(chan string, 1), said: map[string]time.Time{}}
}

// Found takes a version without blocking. Of two versions that Run has not taken yet, the newer stays.
func (k *Keeper) Found(version string) {
	for {
		select {
		case k.versions <- version:
			return
		case <-k.versions:
		}
	}
}

// Installed reports whether detour is installed, and if not, what is missing.
func (k *Keeper) Installed() (ok bool, missing string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.known {
		return false, "the first look at the host is not done yet"
	}
	if k.missing != nil {
		return false, k.missing.Error()
	}
	return true, ""
}

// Run keeps detour installed until ctx ends, and leaves it installed. The error is one of the configuration.
func (k *Keeper) Run(ctx context.Context, count Counter) error {
	version := ""
	for ctx.Err() == nil {
		installer, err := k.installer(version)
		if err != nil {
			return err
		}
		round, stop := context.WithCancel(ctx)
		var running sync.WaitGroup
		running.Go(func() { installer.Run(round, func(s State) { k.take(s, count) }) })
		select {
		case version = <-k.versions:
		case <-ctx.Done():
		}
		stop()
		running.Wait()
	}
	return nil
}

func (k *Keeper) installer(version string) (*Installer, error) {
	var err error
	c := k.conf
	if c.Entry, err = k.netConf.WithVersion(version); err != nil {
		return nil, err
	}
	return New(c)
}

// take logs and counts what a round of the installer did, and keeps what is missing. Another program may change what is installed
// several times a second, so the log has the same news once a minute.
func (k *Keeper) take(s State, count Counter) {
	for _, c := range s.Changes {
		count.CountInstall(string(c.Part))
		log := k.log.With("part", c.Part, "file", c.File, "reason", c.Reason)
		if c.Rival == 0 {
			log.Info("installed", "event", "installed")
			continue
		}
		count.CountConflict()
		if k.isNews(c.File) {
			log.Warn("another program had changed what is installed; restored", "event", "install-conflict", "times", c.Rival)
		}
	}
	if s.Err != nil && k.isNews(s.Err.Error()) {
		k.log.Warn("not installed; trying again", "event", "install-failed", "error", s.Err.Error())
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.missing, k.known = s.Err, true
}

// isNews reports whether something was not logged within the last minute, and remembers it.
func (k *Keeper) isNews(what string) bool {
	now := time.Now()
	maps.DeleteFunc(k.said, func(_ string, when time.Time) bool { return now.Sub(when) >= time.Minute })
	if _, ok := k.said[what]; ok {
		return false
	}
	k.said[what] = now
	return true
}
