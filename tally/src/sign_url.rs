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
