//! Certificates of a test's own, made by openssl in its folder and good for two days.

use crate::{found, skip};
use std::path::{Path, PathBuf};
use std::process::Command;

/// An authority that nobody trusts but who is told to.
pub struct Authority {
    dir: PathBuf,
    /// Its certificate, PEM.
    pub certificate: PathBuf,
}

/// A certificate and its key, PEM each.
pub struct Issued {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Authority {
    /// Makes one, with its files in `dir`; `None`, said aloud, where there is no openssl.
    pub fn make(dir: &Path) -> Option<Authority> {
        if !found("openssl") {
            return skip("openssl", "it is not in PATH");
        }
        let authority = Authority { dir: dir.to_owned(), certificate: dir.join("authority.pem") };
        // None of what the machine's own configuration would add.
        let written = std::fs::write(dir.join("openssl.cnf"), "[req]\ndistinguished_name = name\n[name]\n");
        written.unwrap_or_else(|error| panic!("cannot write into {}: {error}", dir.display()));
        authority.request("authority", &["-addext", "basicConstraints=critical,CA:TRUE"]);
        Some(authority)
    }

    /// A server's certificate, for these names: `IP:127.0.0.1`, `DNS:localhost`.
    pub fn issue(&self, name: &str, names: &str) -> Issued {
        let (names, signer) = (format!("subjectAltName={names}"), self.certificate.display().to_string());
        let key = self.dir.join("authority.key").display().to_string();
        self.request(name, &["-addext", &names, "-CA", &signer, "-CAkey", &key]);
        Issued { certificate: self.dir.join(format!("{name}.pem")), key: self.dir.join(format!("{name}.key")) }
    }

    fn request(&self, name: &str, arguments: &[&str]) {
        let file = |ending: &str| self.dir.join(format!("{name}.{ending}"));
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
        openssl.args(["-days", "2", "-subj", &format!("/CN={name} of a test"), "-config"]);
        openssl.arg(self.dir.join("openssl.cnf")).args(arguments);
        let output = openssl.arg("-keyout").arg(file("key")).arg("-out").arg(file("pem")).output();
        let output = output.unwrap_or_else(|error| panic!("cannot run openssl: {error}"));
        assert!(output.status.success(), "{openssl:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
