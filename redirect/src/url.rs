//! What a click's URL says: which impression of which ad. Nothing in it can set the time or the page.

use crate::catalog::{Ad, Catalog};
use crate::problem::Problem;
use crate::signature::{Keys, Signed};
use axum::http::Uri;
use click::{AdId, CampaignId, ImpressionId, Invalid, InvalidReason, Millis, PublisherId};
use std::borrow::Cow;
use std::str::FromStr;

/// Where clicks come in; the impression id is the last segment.
pub(crate) const CLICK_PATH: &str = "/api/v1/click/";

const ESCAPES_ALLOWED: &str = "UTF-8, percent-encoded";

/// A click's URL, parsed and looked up.
pub(crate) struct ClickUrl<'c> {
    pub impression_id: ImpressionId,
    pub ad: &'c Ad,
    /// Whether campaign and publisher, as far as the URL names them, are the catalog's.
    pub agrees: bool,
    /// Billed by its signature, or the reason why not.
    pub signature: Result<(), InvalidReason>,
}

impl<'c> ClickUrl<'c> {
    /// What the URL says to a click at `at`.
    pub fn parse(uri: &Uri, catalog: &'c Catalog, keys: &Keys, at: Millis) -> Result<Self, Problem> {
        let segment = uri.path().strip_prefix(CLICK_PATH).unwrap_or_default();
        let impression_id: ImpressionId = parsed("impressionId", &decoded("impressionId", segment, false)?)?;
        let (mut ad_id, mut campaign_id, mut publisher_id) = (None, None, None);
        let [mut expires, mut key_id, mut signature] = [const { Mark::Absent }; 3];
        for pair in uri.query().unwrap_or_default().split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            // Ad servers and browsers add parameters of their own, also ones that nobody filled in, like
            // `cb=%%CACHEBUSTER%%`: they are none of a click's business and must not cost one.
            match decoded("query", name, true).as_deref() {
                Ok("ad_id") => once("ad_id", &mut ad_id, value)?,
                Ok("campaign_id") => once("campaign_id", &mut campaign_id, value)?,
                Ok("publisher_id") => once("publisher_id", &mut publisher_id, value)?,
                Ok("exp") => expires.set(value),
                Ok("kid") => key_id.set(value),
                Ok("sig") => signature.set(value),
                _ => {}
            }
        }
        let ad_id = ad_id.ok_or_else(|| Problem::missing("ad_id", "the id of an ad in the catalog"))?;
        let ad = catalog.get(&ad_id);
        // All are checked before an unknown ad is, so that a malformed URL is always told so.
        is_known::<AdId>("ad_id", Some(&ad_id), ad.map(|ad| ad.ad_id.as_str()))?;
        let campaign = ad.map(|ad| ad.campaign_id.as_str());
        let publisher = ad.map(|ad| ad.publisher_id.as_str());
        let agrees = is_known::<CampaignId>("campaign_id", campaign_id.as_deref(), campaign)?
            & is_known::<PublisherId>("publisher_id", publisher_id.as_deref(), publisher)?;
        let ad = ad.ok_or_else(|| Problem::unknown_ad(&ad_id))?;
        let signature = if keys.is_empty() {
            Ok(())
        } else {
            let marks = [&expires, &key_id, &signature];
            let signed = Signed {
                impression_id: impression_id.as_str(),
                ad_id: &ad_id,
                campaign_id: campaign_id.as_deref().unwrap_or_default(),
                publisher_id: publisher_id.as_deref().unwrap_or_default(),
                expires: expires.text().and_then(|text| text.parse().ok()).unwrap_or_default(),
            };
            keys.judge(&signed, marks.map(Mark::text), at)
        };
        Ok(ClickUrl { impression_id, ad, agrees, signature })
    }
}

/// One of the parameters of a signature. They are a signer's, so nothing about them is an error of the click's.
enum Mark<'a> {
    Absent,
    Once(Cow<'a, str>),
    /// Given twice, or not to be read.
    Spoilt,
}

impl<'a> Mark<'a> {
    fn set(&mut self, value: &'a str) {
        *self = match (&self, decoded("query", value, true)) {
            (Mark::Absent, Ok(text)) => Mark::Once(text),
            _ => Mark::Spoilt,
        };
    }

    /// Nothing is what was not given; what is spoilt is text that fits nothing.
    fn text(&self) -> Option<&str> {
        match self {
            Mark::Absent => None,
            Mark::Once(text) => Some(text),
            Mark::Spoilt => Some(""),
        }
    }
}

/// The name of a pair of a query, if it can be read.
pub(crate) fn name_of(pair: &str) -> Option<Cow<'_, str>> {
    let name = pair.split('=').next().unwrap_or_default();
    decoded("query", name, true).ok()
}

fn parsed<T: FromStr<Err = Invalid>>(field: &'static str, text: &str) -> Result<T, Problem> {
    text.parse().map_err(|invalid| Problem::malformed(field, invalid))
}

/// Whether an id is the catalog's, if it is given at all. What equals an id of the catalog is well-formed: the usual
/// click parses nothing again.
fn is_known<T: FromStr<Err = Invalid>>(
    field: &'static str,
    given: Option<&str>,
    known: Option<&str>,
) -> Result<bool, Problem> {
    match given {
        Some(given) if known != Some(given) => parsed::<T>(field, given).map(|_| false),
        _ => Ok(true),
    }
}

/// A parameter that is given twice has no value: two readers could take different ones.
fn once<'a>(field: &'static str, slot: &mut Option<Cow<'a, str>>, value: &'a str) -> Result<(), Problem> {
    let value = decoded(field, value, true)?;
    match slot {
        Some(_) => Err(Problem::repeated(field, &value)),
        None => {
            *slot = Some(value);
            Ok(())
        }
    }
}

/// Undoes percent-encoding, strictly. A plus is a space in a query.
fn decoded<'a>(field: &'static str, text: &'a str, plus_is_space: bool) -> Result<Cow<'a, str>, Problem> {
    let is_encoded = |byte| byte == b'%' || plus_is_space && byte == b'+';
    if !text.bytes().any(is_encoded) {
        return Ok(Cow::Borrowed(text));
    }
    let malformed = || Problem::malformed(field, Invalid::new("encoding", text, ESCAPES_ALLOWED));
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
                match (digit(), digit()) {
                    (Some(high), Some(low)) => (high * 16 + low) as u8,
                    _ => return Err(malformed()),
                }
            }
            b'+' if plus_is_space => b' ',
            other => other,
        });
    }
    String::from_utf8(decoded).map(Cow::Owned).map_err(|_| malformed())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn escapes_are_undone_strictly() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(decoded("query", text, true).ok().as_deref(), expected, "{text}");
        };
        check("a%3Ab+%e4%BD%a0", Some("a:b 你"));
        check("a%2Bb", Some("a+b"));
        for wrong in ["%", "a%4", "%zz", "%+1", "%ff", "%E4%BD", "%4%31"] {
            check(wrong, None);
        }
        assert_eq!(decoded("path", "a+b%20", false).unwrap(), "a+b ");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_and_what_was_encoded_comes_back(text in ".*", any in "[%+a-fA-F0-9é]{0,12}") {
            let encoded: String = text.bytes().map(|b| format!("%{b:02X}")).collect();
            prop_assert_eq!(decoded("query", &encoded, true).unwrap(), text);
            let _ = decoded("query", &any, true);
        }
    }
}
