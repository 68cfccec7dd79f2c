package server

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Listen bounds the connections that l accepts at one time. When there are so many, others wait until one ends. Of a listener that other
// machines reach, one address may hold no more than what is then left for the others: what it opens beyond that is closed at once.
func Listen(l net.Listener, limit int) net.Listener {
	a, ok := l.Addr().(*net.TCPAddr)
	ctx, stop := context.WithCancel(context.Background())
	return &listener{Listener: l, places: newPool(int64(limit), ok && !a.IP.IsLoopback()), ctx: ctx, stop: stop}
}

type listener struct {
	net.Listener
	places *pool
	ctx    context.Context // ends with Close
	stop   context.CancelFunc
}

// Accept waits for a connection that has a place.
func (l *listener) Accept() (net.Conn, error) {
	for {
		if !l.roomy() {
			return nil, net.ErrClosed
		}
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := address(c.RemoteAddr())
		if l.places.take(from, 1) {
			return &connection{Conn: c, end: sync.OnceFunc(func() { l.places.give(from, 1) })}, nil
		}
		if t, ok := c.(*net.TCPConn); ok {
			_ = t.SetLinger(0) // nothing is kept of it
		}
		c.Close()
	}
}

// roomy waits until there is a place for somebody. It reports false when the listener was closed.
func (l *listener) roomy() bool {
	const nobody = "-" // no address: whoever holds nothing gets what there is
	if l.places.wait(l.ctx, nobody, 1, time.Now().Add(1<<62)) != nil {
		return false
	}
	l.places.give(nobody, 1)
	return true
}

// Close ends the listening.
func (l *listener) Close() error {
	l.stop()
	return l.Listener.Close()
}

// address is who a connection counts for: of IPv6, the network that one customer has.
func address(a net.Addr) string {
	at, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return a.String()
	}
	ip := at.Addr().Unmap()
	if ip.Is6() {
		p, _ := ip.Prefix(64) // of 128 bits
		return p.String()
	}
	return ip.String()
}

// connection gives its place back when it is closed.
type connection struct {
	net.Conn
	end func()
}

// CloseWrite says that nothing more will come, and lets the other side read what did: the standard library does so when it answers a
// request whose body it does not want.
func (c *connection) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return nil
}

// Close closes the connection.
func (c *connection) Close() error {
	err := c.Conn.Close()
	c.end()
	return err
}
