//! `tally sign-url`: a signed click URL, by hand. `docs/signed-urls.md` is the recipe for whoever serves ads.

use anyhow::{Context, Result, ensure};
use clap::Args;
use click::{AdId, CampaignId, Clock, ImpressionId, PublisherId, SystemClock};
use redirect::signature::{Signed, sign};
use std::path::PathBuf;
use std::time::Duration;

/// Where the key stands if no file does. Not an argument: those are seen by all users of a machine.
const KEY: &str = "TALLY_SIGN_KEY";

#[derive(Debug, Args)]
#[command(after_help = "The key is read from the file, or from the variable TALLY_SIGN_KEY; never from an argument.")]
pub struct SignUrl {
    /// The id of the key, as the redirects know it
    #[arg(long, value_name = "ID")]
    key_id: String,
    /// File with the key; a line feed at its end is not part of it
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    #[arg(long, value_name = "ID")]
    impression: ImpressionId,
    #[arg(long, value_name = "ID")]
    ad: AdId,
    #[arg(long, value_name = "ID")]
    campaign: CampaignId,
    /// The publisher; not in the URL if it is not given
    #[arg(long, value_name = "ID")]
    publisher: Option<PublisherId>,
    /// How long the URL is good; the redirects bound it
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration)]
    expires_in: Duration,
    /// Where the redirect is
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    url: String,
}

impl SignUrl {
    /// The signed URL.
    ///
    /// # Errors
    /// If there is no key, or it is too short, or the time is none.
    pub fn signed(&self) -> Result<String> {
        let key = match &self.key_file {
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| format!("the key file {}", path.display()))?;
                text.trim_end_matches(['\r', '\n']).to_owned()
            }
            None => std::env::var(KEY).with_context(|| format!("no key: set {KEY}, or name a file with --key-file"))?,
        };
        let seconds = i64::try_from(self.expires_in.as_secs()).context("--expires-in")?;
        ensure!(seconds > 0, "--expires-in is {:?}: at least a second", self.expires_in);
        let expires = (SystemClock.now().get() / 1_000).saturating_add(seconds);
        let SignUrl { key_id, impression, ad, campaign, publisher, url, .. } = self;
        let publisher_id = publisher.as_ref().map_or("", |publisher| publisher.as_str());
        let (impression_id, ad_id, campaign_id) = (impression.as_str(), ad.as_str(), campaign.as_str());
        let signature = sign(key.as_bytes(), &Signed { impression_id, ad_id, campaign_id, publisher_id, expires })?;
        let publisher = publisher.as_ref().map_or(String::new(), |publisher| format!("&publisher_id={publisher}"));
        let url = url.trim_end_matches('/');
        // Of the characters of ids all may stand in a URL as they are.
        Ok(format!(
            "{url}/api/v1/click/{impression}?ad_id={ad}&campaign_id={campaign}{publisher}&exp={expires}&kid={key_id}&sig={signature}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        sign: SignUrl,
    }

    fn asked(more: &[&str]) -> Result<String> {
        let given = ["sign", "--key-id", "k1", "--impression", "imp_1", "--ad", "ad_9", "--campaign", "cmp_7"];
        Cli::try_parse_from(given.iter().chain(more))?.sign.signed()
    }

    #[test]
    fn the_url_is_signed_with_the_key_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        let key = "0123456789abcdef0123456789abcdef";
        std::fs::write(&file, format!("{key}\n")).unwrap();
        let file = file.display().to_string();
        let before = SystemClock.now().get() / 1_000;
        let url =
            asked(&["--key-file", &file, "--publisher", "pub_1", "--expires-in", "10m", "--url", "https://t.example/"]);
        let url = url.unwrap();
        let (start, rest) = url.split_once("&exp=").unwrap();
        assert_eq!(start, "https://t.example/api/v1/click/imp_1?ad_id=ad_9&campaign_id=cmp_7&publisher_id=pub_1");
        let (expires, rest) = rest.split_once("&kid=k1&sig=").unwrap();
        let expires: i64 = expires.parse().unwrap();
        assert!((before + 600..before + 660).contains(&expires), "{expires}");
        let [impression_id, ad_id, campaign_id, publisher_id] = ["imp_1", "ad_9", "cmp_7", "pub_1"];
        let signed = Signed { impression_id, ad_id, campaign_id, publisher_id, expires };
        assert_eq!(rest, sign(key.as_bytes(), &signed).unwrap());
    }

    #[test]
    fn what_cannot_be_signed_is_said() {
        let missing = asked(&["--key-file", "/nowhere/key"]).unwrap_err().to_string();
        assert_eq!(missing, "the key file /nowhere/key");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        std::fs::write(&file, "0123456789abcdef0123456789abcdef").unwrap();
        let file = file.display().to_string();
        let none = asked(&["--key-file", &file, "--expires-in", "0s"]).unwrap_err().to_string();
        assert_eq!(none, "--expires-in is 0ns: at least a second");
        std::fs::write(&file, "short").unwrap();
        assert!(asked(&["--key-file", &file]).is_err());
    }
}
