package cluster

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"strings"

	"github.com/273ebdf9/lb/backends"
)

// Config is the cluster that this lb belongs to, [cluster]. Without the table lb belongs to none, and
// connects to no etcd.
type Config struct {
	// Name is the name of the cluster. All of its lbs have the same; their keys in etcd begin with
	// /lb/NAME/. Required.
	Name string `toml:"name"`
	// Host is the name of this lb in the cluster, which no other one may have. Default "": the host's name.
	Host string `toml:"host"`
	// Endpoints are the nodes of etcd: "http://HOST:PORT", or "https://HOST:PORT" with TLS. At least one.
	Endpoints []string `toml:"endpoints"`
	// CAFile is a file of the certificates, in PEM, that the nodes' certificates are checked against. Default
	// "": those of the system.
	CAFile string `toml:"ca_file"`
	// CertFile and KeyFile are lb's own certificate and key, in PEM, for an etcd that asks for one. Default
	// "": none.
	CertFile string `toml:"cert_file"`
	// KeyFile is the key of CertFile. Default "": none.
	KeyFile string `toml:"key_file"`
	// User is the user of etcd, if it has users. Default "": none.
	User string `toml:"user"`
	// PasswordFile is a file with the user's password in its first line. Default "": none.
	PasswordFile string `toml:"password_file"`
}

// DefaultConfig returns a cluster with every default set. It has no name and no endpoints.
func DefaultConfig() Config { return Config{} }

// Validate returns every fault. Each error's text starts with the key.
func (c *Config) Validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !backends.ValidName(c.Name) {
		fault("name: %q cannot name a cluster; write 1 to 64 letters, digits, dots, dashes or underscores, a letter or digit first", c.Name)
	}
	if c.Host != "" && !backends.ValidName(c.Host) {
		fault("host: %q cannot name an lb; write 1 to 64 letters, digits, dots, dashes or underscores, a letter or digit first", c.Host)
	}
	if len(c.Endpoints) == 0 {
		fault("endpoints: missing; write the nodes of etcd, such as [\"http://127.0.0.1:2379\"]")
	}
	secure := 0
	for i, e := range c.Endpoints {
		u, err := url.Parse(e)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Port() == "" || u.Path != "" || u.User != nil {
			fault("endpoints[%d]: %q is no node; write \"http://HOST:PORT\" or \"https://HOST:PORT\"", i, e)
			continue
		}
		if u.Scheme == "https" {
			secure++
		}
	}
	if secure != 0 && secure != len(c.Endpoints) {
		fault("endpoints: all are https, or none is")
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		fault("key_file: cert_file and key_file need each other")
	}
	if secure == 0 && (c.CAFile != "" || c.CertFile != "") {
		fault("endpoints: ca_file and cert_file are for https endpoints")
	}
	if (c.User == "") != (c.PasswordFile == "") {
		fault("password_file: user and password_file need each other")
	}
	return errors.Join(errs...)
}

// EffectiveHost returns Host, or the name of the machine where none is given.
func (c *Config) EffectiveHost() (string, error) {
	if c.Host != "" {
		return c.Host, nil
	}
	name, err := os.Hostname()
	if err == nil && !backends.ValidName(name) {
		err = fmt.Errorf("%q cannot name an lb", name)
	}
	if err != nil {
		return "", fmt.Errorf("cannot take the host's name for cluster.host: %w; write one", err)
	}
	return name, nil
}

// tls returns what connections to https endpoints need; nil for http.
func (c *Config) tls() (*tls.Config, error) {
	if !strings.HasPrefix(c.Endpoints[0], "https:") {
		return nil, nil
	}
	t := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("cannot read cluster.ca_file: %w", err)
		}
		if t.RootCAs = x509.NewCertPool(); !t.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("cluster.ca_file %q has no certificate in PEM", c.CAFile)
		}
	}
	if c.CertFile != "" {
		cert, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
		if err != nil {
			return nil, fmt.Errorf("cannot read cluster.cert_file and key_file: %w", err)
		}
		t.Certificates = []tls.Certificate{cert}
	}
	return t, nil
}

// password returns the first line of PasswordFile.
func (c *Config) password() (string, error) {
	if c.PasswordFile == "" {
		return "", nil
	}
	text, err := os.ReadFile(c.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("cannot read cluster.password_file: %w", err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	return strings.TrimRight(line, "\r"), nil
}

// PublishConfig is what a listener shows to other hosts: a key of [listeners.NAME]. The zero value shows
// nothing.
type PublishConfig struct {
	// Publish is the address, IP:PORT, under which other hosts reach this listener. lb writes it into etcd,
	// with how much the listener's pool can take, so that pools with discover = "etcd" find it. Needs
	// [cluster]. Default "": not published.
	Publish string `toml:"publish"`
}

// DefaultPublishConfig returns a listener that is not published.
func DefaultPublishConfig() PublishConfig { return PublishConfig{} }

// CheckPublish returns an error unless address can be published: an IP address and port that other hosts
// reach.
func CheckPublish(address string) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil || ap.Port() == 0 || ap.Addr().Zone() != "" || ap.Addr().IsUnspecified() || ap.Addr().IsMulticast() {
		return fmt.Errorf("%q is no address that other hosts reach; write IP:PORT or [V6]:PORT", address)
	}
	return nil
}
