//! An nginx of a test's own.

use crate::tls::{Authority, Issued};
use crate::{Server, found, free_port, skip};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// How long nginx may take to listen, on a busy machine.
const START_WAIT: Duration = Duration::from_secs(30);

/// nginx before a server on loopback, with TLS and HTTP/2. Killed when dropped.
pub struct Nginx {
    server: Server,
    authority: Authority,
}

impl Nginx {
    /// Starts nginx before `upstream`, `host:port`, with a certificate of an authority of its own; `None`, said aloud, where
    /// there is no nginx or no openssl.
    pub fn start(dir: &Path, upstream: &str) -> Option<Nginx> {
        if !found("nginx") {
            return skip("nginx", "it is not in PATH");
        }
        let authority = Authority::make(dir)?;
        let Issued { certificate, key } = authority.issue("nginx", "IP:127.0.0.1,DNS:localhost");
        let (certificate, key) = (certificate.display(), key.display());
        let (port, folder) = (free_port(), dir.display());
        let config = format!(
            "daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;\n\
             events {{ }}\n\
             http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n\
             fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;\n\
             upstream redirect {{ server {upstream}; keepalive 4; }}\n\
             server {{ listen 127.0.0.1:{port} ssl http2; ssl_certificate {certificate}; ssl_certificate_key {key};\n\
             location / {{ proxy_pass http://redirect; proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
             proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }} }} }}\n"
        );
        let path = dir.join("nginx.conf");
        std::fs::write(&path, config).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
        let mut command = Command::new("nginx");
        command.arg("-c").arg(&path).arg("-p").arg(dir).arg("-e").arg(dir.join("nginx.log"));
        let server = Server::start(command, port, &dir.join("nginx.out"), START_WAIT);
        Some(Nginx { server, authority })
    }

    /// The certificate by which its own is trusted.
    pub fn authority(&self) -> &Path {
        &self.authority.certificate
    }

    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.server.port)
    }
}
