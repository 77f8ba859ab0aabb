//! An nginx of a test's own.

use crate::{Server, found, free_port, skip};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// How long nginx may take to listen, on a busy machine.
const START_WAIT: Duration = Duration::from_secs(30);

/// nginx before a server on loopback, with TLS and HTTP/2. Killed when dropped.
pub struct Nginx {
    server: Server,
}

impl Nginx {
    /// Starts nginx before `upstream`, `host:port`, with a certificate that it signs itself; `None`, said aloud, where there
    /// is no nginx or no openssl.
    pub fn start(dir: &Path, upstream: &str) -> Option<Nginx> {
        for program in ["nginx", "openssl"] {
            if !found(program) {
                return skip(program, "it is not in PATH");
            }
        }
        let certificate = Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
            .args(["-subj", "/CN=localhost", "-keyout"])
            .arg(dir.join("key.pem"))
            .arg("-out")
            .arg(dir.join("certificate.pem"))
            .output()
            .expect("openssl runs");
        assert!(certificate.status.success(), "{}", String::from_utf8_lossy(&certificate.stderr));
        let (port, folder) = (free_port(), dir.display());
        let config = format!(
            "daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/nginx.log;\n\
             events {{ }}\n\
             http {{ access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;\n\
             fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;\n\
             upstream redirect {{ server {upstream}; keepalive 4; }}\n\
             server {{ listen 127.0.0.1:{port} ssl http2; ssl_certificate {folder}/certificate.pem; ssl_certificate_key {folder}/key.pem;\n\
             location / {{ proxy_pass http://redirect; proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
             proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for; }} }} }}\n"
        );
        let path = dir.join("nginx.conf");
        std::fs::write(&path, config).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
        let mut command = Command::new("nginx");
        command.arg("-c").arg(&path).arg("-p").arg(dir).arg("-e").arg(dir.join("nginx.log"));
        Some(Nginx { server: Server::start(command, port, &dir.join("nginx.out"), START_WAIT) })
    }

    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.server.port)
    }
}
