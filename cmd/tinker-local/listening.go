package main

import (
	"crypto/tls"
	"net"
	"net/url"

	"tinkerlocal/cmd/tinker-local/server"
	"tinkerlocal/engine/api"
)

// check refuses addresses that are none.
func (f serveFlags) check() error {
	if _, _, err := net.SplitHostPort(f.listen); err != nil {
		return api.Errorf(api.BadRequest, "--listen %s: %w; wanted HOST:PORT, such as 127.0.0.1:8000 or [::1]:8000", f.listen, err)
	}
	if f.publicURL == "" {
		return nil
	}
	u, err := url.Parse(f.publicURL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return api.Errorf(api.BadRequest, "--public-url is %q, wanted http://HOST or https://HOST, with a port and a path where they are needed", f.publicURL)
	}
	return nil
}

// listen takes the address, and writes down where the server is.
func (a *app) listen(f serveFlags, certificate *tls.Config, connections int) (net.Listener, *serving, error) {
	l, err := net.Listen("tcp", f.listen)
	if err != nil {
		return nil, nil, api.Errorf(api.BadRequest, "--listen %s: %w; port 0 takes a free one", f.listen, err)
	}
	if at := l.Addr().String(); loopback(f.listen) && !loopback(at) {
		l.Close()
		return nil, nil, api.Errorf(api.BadRequest, "--listen %s is %s here, which other machines can reach: name the address itself", f.listen, at)
	}
	l = server.Listen(l, connections)
	if certificate != nil {
		l = tls.NewListener(l, certificate)
	}
	here, err := a.announce(l.Addr(), certificate)
	if err != nil {
		l.Close()
		return nil, nil, err
	}
	return l, here, nil
}

// loopback says whether an address is this machine's alone.
func loopback(listen string) bool {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// hosts are the names under which a server on this machine alone is asked; nil: every name will do.
func (f serveFlags) hosts(at net.Addr) []string {
	if !loopback(f.listen) {
		return nil
	}
	host, _, _ := net.SplitHostPort(at.String())
	return []string{"localhost", "127.0.0.1", "::1", host}
}

func (f serveFlags) certificate() (*tls.Config, error) {
	if f.tlsCert == "" && f.tlsKey == "" {
		return nil, nil
	}
	if f.tlsCert == "" || f.tlsKey == "" {
		return nil, api.Errorf(api.BadRequest, "--tls-cert and --tls-key belong together")
	}
	pair, err := tls.LoadX509KeyPair(f.tlsCert, f.tlsKey)
	if err != nil {
		return nil, api.Errorf(api.BadRequest, "--tls-cert %s, --tls-key %s: %w", f.tlsCert, f.tlsKey, err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"}}, nil
}

// urlOf is how a client on this machine names an address.
func urlOf(at net.Addr, encrypted bool) string {
	scheme := "http"
	if encrypted {
		scheme = "https"
	}
	host, port, _ := net.SplitHostPort(at.String())
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1" // a socket on all addresses takes both families
		if probe, err := net.Listen("tcp4", host+":0"); err == nil {
			probe.Close()
		} else {
			host = "::1"
		}
	}
	return scheme + "://" + net.JoinHostPort(host, port)
}
