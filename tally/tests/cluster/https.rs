//! ClickHouse behind https, with a certificate of an authority that the machine does not know.

use crate::processes::{binary, root};
use services::clickhouse::ClickHouse;
use services::free_port;
use services::nginx::Nginx;
use std::process::Command;

#[test]
fn clickhouse_behind_https_is_used_if_its_authority_is_trusted_and_else_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let Some(clickhouse) = ClickHouse::start_in(dir.path(), port) else { return };
    let Some(nginx) = Nginx::start(dir.path(), &format!("127.0.0.1:{port}")) else { return };
    let migrate = |authorities: Option<&str>| {
        let mut command = Command::new(binary("tally"));
        command.args(["load", "--migrate"]).current_dir(dir.path()).env("TALLY_CLUSTER_CLICKHOUSE__URL", nginx.url());
        command.env("TALLY_CLUSTER_PIPELINES", root().join("pipelines"));
        command.env_remove("SSL_CERT_DIR").env_remove("SSL_CERT_FILE");
        command.envs(authorities.map(|file| ("SSL_CERT_FILE", file)));
        let output = command.output().unwrap();
        let printed = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text)).concat();
        (output.status.success(), printed)
    };
    let empty = dir.path().join("empty.pem");
    std::fs::write(&empty, "").unwrap();
    let (done, printed) = migrate(empty.to_str());
    assert!(!done && printed.contains("no certificates of authorities"), "{printed}");
    // Of another: its own certificate says nothing of nginx's.
    let folder = tempfile::tempdir().unwrap();
    let other = services::tls::Authority::make(folder.path()).unwrap();
    let (done, printed) = migrate(other.certificate.to_str());
    assert!(!done && printed.contains("invalid peer certificate"), "{printed}");
    let (done, printed) = migrate(nginx.authority().to_str());
    assert!(done, "{printed}");
    assert!(clickhouse.query("SHOW TABLES FROM tally").contains("closings"));
}
