package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/config"
	"github.com/273ebdf9/lb/health"
	"github.com/273ebdf9/lb/proxy"
	"github.com/273ebdf9/lb/supervisor"
)

// handoffAddress returns where clients of a pool connect to by the config, "" if there is no such TCP
// address.
func handoffAddress(c *config.Config, pool string) string {
	address, _, _ := handoffBind(c, pool)
	return address
}

// handoffAddress returns where clients of w's pool connect to: with the port that the kernel chose where the
// config says 0.
func (w *workerPool) handoffAddress() string {
	address, listener, n := handoffBind(w.d.view.Load().cfg, w.Name)
	configured, err := netip.ParseAddrPort(address)
	if err != nil || configured.Port() != 0 {
		return address
	}
	for _, ln := range w.d.proxy.Listeners() {
		if all := ln.Addresses(); ln.Name == listener && n < len(all) {
			if a, err := netip.ParseAddrPort(all[n]); err == nil {
				return netip.AddrPortFrom(configured.Addr(), a.Port()).String()
			}
		}
	}
	return address
}

// handoffBind returns the first TCP address at which clients of a pool connect, and whose it is: the n-th of
// that listener.
func handoffBind(c *config.Config, pool string) (address, listener string, n int) {
	for i := range c.Listeners {
		l := &c.Listeners[i]
		if _, split := l.Split[pool]; l.Pool != pool && !split {
			continue
		}
		for j, bind := range l.Bind {
			a, err := backends.ParseAddress(bind)
			if err != nil || a.IsUnix() {
				continue
			}
			ip, err := netip.ParseAddr(a.Host)
			if err != nil {
				ip = netip.IPv6Unspecified()
			}
			return netip.AddrPortFrom(ip, a.Port).String(), l.Name, j
		}
	}
	return "", "", 0
}

// checkHandoff reports whether a pool's workers are to report the ends of their connections, because the
// kernel does not. The error says why its sockets cannot be handed over here.
func (d *daemon) checkHandoff(cfg *config.Pool) (report bool, err error) {
	if !cfg.HandsOff() {
		return false, nil
	}
	unseen := d.proxy.EndsUnseen()
	switch {
	case unseen == nil:
		return false, nil
	case cfg.Handoff == backends.HandoffNode:
		return false, fmt.Errorf("cannot hand sockets to the Node programs of pool %q: %w; write handoff = \"off\"", cfg.Name, unseen)
	}
	d.log.Warn("connections of workers that do not report their ends count only until they are taken", "pool", cfg.Name, "error", unseen)
	return true, nil
}

// openChannel gives a worker's backend its hand-off channel, if it has one.
func (w *workerPool) openChannel(b supervisor.Backend, m *backends.Backend) {
	if b.Handoff == "" {
		return
	}
	if b.Front < 0 || b.Back < 0 {
		w.d.log.Warn("a worker of before can be given no connections any more: its hand-off channel is gone", "backend", w.Name+"/"+b.Name)
		w.d.proxy.CloseChannel(m) // what an lb before has given it goes to others
		return
	}
	address, _ := netip.ParseAddrPort(w.handoffAddress())
	err := w.d.proxy.OpenChannel(m, proxy.ChannelConfig{
		Node: b.Handoff == supervisor.HandoffNode, Front: b.Front, Back: b.Back, Address: address,
	})
	if err != nil {
		w.d.log.Error("a worker can be given no connections", "backend", w.Name+"/"+b.Name, "error", err)
	}
}

// takenOver notes the sockets that a worker of an lb that was killed holds.
func (w *workerPool) takenOver(b supervisor.Backend, sockets map[uint32]bool) {
	w.with(b, func(m *backends.Backend) {
		n, err := w.d.proxy.Recount(m, sockets)
		if err != nil {
			w.d.log.Warn("cannot see which connections a worker of before has: they are not counted", "backend", w.Name+"/"+b.Name, "error", err)
		} else if n > 0 {
			w.d.log.Info("a worker of before has connections, which count", "backend", w.Name+"/"+b.Name, "sessions", n)
		}
	})
}

// offline takes a worker out: no new connection is chosen for it, or handed to it.
func (w *workerPool) offline(b supervisor.Backend, reason string) {
	w.with(b, func(m *backends.Backend) {
		w.checker.Offline(m, reason)
		w.d.proxy.Disconnect(m)
	})
}

// probe hands a worker that starts a connection of lb's own, and returns once the worker has taken it.
func (w *workerPool) probe(ctx context.Context, b supervisor.Backend) (err error) {
	err = proxy.ErrNoChannel
	w.with(b, func(m *backends.Backend) {
		var conn net.Conn
		if conn, err = w.d.dialChannel(ctx, m); err == nil {
			conn.Close()
		}
	})
	return err
}

// dialChannel hands a worker a connection of lb's own. It returns lb's end once the worker has taken it.
func (d *daemon) dialChannel(ctx context.Context, b *backends.Backend) (net.Conn, error) {
	f, err := d.proxy.Probe(ctx, b)
	if errors.Is(err, proxy.ErrBusy) {
		return nil, health.ErrBusy
	}
	if err != nil {
		return nil, err
	}
	defer f.Close() // FileConn makes a copy
	return net.FileConn(f)
}

// channelEvent handles a message that a worker sent over its channel. It runs on a loop.
func (d *daemon) channelEvent(b *backends.Backend, event proxy.ChannelEvent, text string) {
	w, ok := d.view.Load().checkers[b.Pool()]
	if !ok || w.workers == nil {
		return
	}
	name := b.Pool().Name + "/" + b.Name
	switch event {
	case proxy.ChannelReady:
		w.workers.Notify(b.Name, supervisor.NoticeReady, `process.send("ready")`)
	case proxy.ChannelLeaves:
		w.workers.Notify(b.Name, supervisor.NoticeLeaves, text)
	case proxy.ChannelBroken:
		d.report(slog.LevelError, api.Event{Kind: "handoff", Subject: name, Text: "given no connections any more: " + text},
			"a worker is given no connections any more", "backend", name, "reason", text)
		w.workers.SetHealth(b.Name, false, text)
		w.Broken(b, text)
	case proxy.ChannelOther:
		d.report(slog.LevelWarn, api.Event{Kind: "handoff", Subject: name, Text: text}, "a worker wants more than lb does for it", "backend", name, "reason", text)
	}
}

// untaken notes that a worker does not take what it was given. It runs on a loop.
func (d *daemon) untaken(b *backends.Backend) {
	if w, ok := d.view.Load().checkers[b.Pool()]; ok {
		w.Untaken(b, b.Pool().Config().HandoffTimeout)
	}
}
