//! Names of things. Each kind has a type of its own, so that no ad id can stand where a campaign id should.

use crate::{Invalid, Millis};
use serde::{Deserialize, Deserializer, Serialize};
use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use uuid::Uuid;

/// Longest id that is taken. Ids stand in URLs, in every record and in every group of a report.
pub const ID_BYTES_MAX: usize = 128;

const ID_ALLOWED: &str = "1 to 128 of the characters A-Z a-z 0-9 _ - . ~ :";

fn check_id(what: &'static str, text: &str) -> Result<(), Invalid> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_-.~:".contains(&b);
    if text.is_empty() || text.len() > ID_BYTES_MAX || !text.bytes().all(allowed) {
        return Err(Invalid::new(what, text, ID_ALLOWED));
    }
    Ok(())
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name(Arc<str>);

        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                check_id($what, text)?;
                Ok($name(text.into()))
            }
        }

        /// A map by id is asked with a piece of a request, without a copy. Hash and equality are those of the text.
        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

text_id!(
    /// One showing of an ad. At most one click of an impression is billed.
    ImpressionId,
    "impression id"
);
text_id!(
    /// An ad, which has one landing page.
    AdId,
    "ad id"
);
text_id!(
    /// A campaign of an advertiser: ads that share a budget.
    CampaignId,
    "campaign id"
);
text_id!(
    /// The publisher on whose page the ad was shown.
    PublisherId,
    "publisher id"
);
text_id!(
    /// The advertiser who pays for a campaign.
    AdvertiserId,
    "advertiser id"
);

/// One click, named by the redirect that answered it: a UUIDv7, whose first 48 bits are the click's time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ClickId(Uuid);

impl ClickId {
    /// A new id for a click at `at`. Ids of one millisecond differ in 74 random bits.
    pub fn new(at: Millis) -> Self {
        // A generator of the thread's own, seeded by the system: asking the system each time is a call into the kernel
        // for every click.
        let random: [u8; 10] = rand::random();
        ClickId(uuid::Builder::from_unix_timestamp_millis(at.get().max(0) as u64, &random).into_uuid())
    }

    /// The time of the click, to the millisecond.
    pub fn at(self) -> Millis {
        let bytes = self.0.as_bytes();
        Millis::new(bytes[..6].iter().fold(0, |ms, byte| ms << 8 | i64::from(*byte)))
    }
}

impl fmt::Display for ClickId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for ClickId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match Uuid::try_parse(text) {
            Ok(id) if id.get_version_num() == 7 => Ok(ClickId(id)),
            _ => Err(Invalid::new("click id", text, "a UUID of version 7")),
        }
    }
}

impl<'de> Deserialize<'de> for ClickId {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Names one life of a topic. It changes when the topic is made anew, so an old position is never taken for a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LogId(Uuid);

impl LogId {
    pub fn random() -> Self {
        LogId(Uuid::new_v4())
    }

    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        LogId(Uuid::from_bytes(bytes))
    }

    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }
}

impl fmt::Display for LogId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for LogId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        Uuid::try_parse(text).map(LogId).map_err(|_| Invalid::new("log id", text, "a UUID"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_checked() {
        let longest = "a".repeat(128);
        for good in ["imp_1", "A-b.c~d:9", &longest] {
            assert_eq!(good.parse::<ImpressionId>().unwrap().as_str(), good);
        }
        let longer = "a".repeat(129);
        for bad in ["", " ", "imp 1", "imp/1", "ä", "a\n", "a\0", &longer] {
            assert!(bad.parse::<AdId>().is_err(), "{bad:?}");
        }
        let error = "x y".parse::<AdId>().unwrap_err().to_string();
        assert_eq!(error, r#"ad id "x y" is not valid: 1 to 128 of the characters A-Z a-z 0-9 _ - . ~ :"#);
        assert!(longer.parse::<AdId>().unwrap_err().given.ends_with('…'));
    }

    #[test]
    fn a_click_id_tells_its_time_and_no_two_are_equal() {
        let at = Millis::new(1_776_686_400_123);
        let ids: std::collections::HashSet<ClickId> = (0..10_000).map(|_| ClickId::new(at)).collect();
        assert_eq!(ids.len(), 10_000);
        for id in ids {
            assert_eq!(id.at(), at);
            assert_eq!(id.to_string().parse::<ClickId>().unwrap(), id);
        }
        assert!("67e55044-10b1-426f-9247-bb680e5fe0c8".parse::<ClickId>().is_err(), "version 4 is no click id");
    }
}
