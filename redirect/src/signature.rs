//! Signed URLs: who shows an ad says so, in a way that nobody else can.
//!
//! The signature is HMAC-SHA256 (RFC 2104), in lower-case hexadecimal digits, under a key of at least 32 bytes, over six
//! lines that each end with a line feed: `tally-1`, impression id, ad id, campaign id, publisher id (empty if the URL names
//! none), and the expiry in seconds since 1970. Ids have no line feed in them, so two clicks never sign the same text.
//! `docs/signed-urls.md` has the recipe in other languages, with vectors that a test checks.

use click::{InvalidReason, Millis};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Fewest bytes of a key: as many as the hash has.
pub const KEY_BYTES_MIN: usize = 32;
/// What is allowed for beside that which is set: clocks that differ, and a click of the spool that is read and handed over.
const BETWEEN: Duration = Duration::from_secs(60);

/// What a signature is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signed<'a> {
    pub impression_id: &'a str,
    pub ad_id: &'a str,
    /// As the URL names it.
    pub campaign_id: &'a str,
    /// As the URL names it; empty if it does not.
    pub publisher_id: &'a str,
    /// Seconds since 1970 after which the signature is over.
    pub expires: i64,
}

/// The keys by which signatures are checked, by key id. Two at once let signers change from one to the other.
#[derive(Clone, Default)]
pub struct Keys {
    keys: BTreeMap<String, Hmac<Sha256>>,
    longest: Duration,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keys({})", self.ids())
    }
}

/// Why keys are refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("key id {0:?} is not valid: 1 to 32 of the characters A-Z a-z 0-9 _ -")]
    Id(String),
    #[error("key id {0:?} is given twice: one key for each id")]
    Twice(String),
    /// The key itself must not stand in a message.
    #[error("key {id:?} has {bytes} bytes, and must have at least {KEY_BYTES_MIN}")]
    Short { id: String, bytes: usize },
    #[error(
        "signatures may last {longest:?}, the spool keeps clicks for {spool:?} (its age_max), an append may take {append:?} \
         (append_wait, and on Kafka delivery_timeout), and with a minute that is more than the dedup horizon of {horizon:?}: a \
         signed impression could be billed twice"
    )]
    OutlivesHorizon { longest: Duration, spool: Duration, append: Duration, horizon: Duration },
}

impl Keys {
    /// Keys by id; signatures last at most `longest` from the moment they are used.
    ///
    /// # Errors
    /// Names the key that cannot be one.
    pub fn new<'a>(keys: impl IntoIterator<Item = (&'a str, &'a [u8])>, longest: Duration) -> Result<Keys, KeyError> {
        let mut checked = BTreeMap::new();
        for (id, key) in keys {
            let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
            if id.is_empty() || id.len() > 32 || !id.bytes().all(fits) {
                return Err(KeyError::Id(id.chars().take(80).collect()));
            }
            if key.len() < KEY_BYTES_MIN {
                return Err(KeyError::Short { id: id.into(), bytes: key.len() });
            }
            if checked.insert(id.to_owned(), keyed(key)).is_some() {
                return Err(KeyError::Twice(id.into()));
            }
        }
        Ok(Keys { keys: checked, longest })
    }

    /// A signature can be used until it is over, its click can wait in a spool after that, and the log can take it as late as
    /// an append may last, which with Kafka is minutes or hours: all of it has to lie within the dedup horizon, so that one
    /// impression is never billed twice.
    ///
    /// # Errors
    /// If it does not.
    pub fn check_horizon(&self, spool: Duration, append: Duration, horizon: Duration) -> Result<(), KeyError> {
        let longest = self.longest;
        let all = [spool, append, BETWEEN].into_iter().fold(longest, Duration::saturating_add);
        if self.keys.is_empty() || all <= horizon {
            return Ok(());
        }
        Err(KeyError::OutlivesHorizon { longest, spool, append, horizon })
    }

    /// Whether there are any: without keys every click counts.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// The key ids, for messages.
    pub fn ids(&self) -> String {
        self.keys.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
    }

    /// Judges a click at `at` by what its URL gives as `exp`, `kid` and `sig`: billed, or the reason why not.
    ///
    /// # Errors
    /// `Unsigned` without a signature; `Expired` after its time; `BadSignature` for everything else: an unknown key, another
    /// text, a time further ahead than signatures last.
    pub fn judge(
        &self,
        signed: &Signed<'_>,
        [expires, key_id, signature]: [Option<&str>; 3],
        at: Millis,
    ) -> Result<(), InvalidReason> {
        if self.keys.is_empty() {
            return Ok(());
        }
        let Some(signature) = signature else { return Err(InvalidReason::Unsigned) };
        // A number that could be written in another way would be signed in another way.
        if expires != Some(signed.expires.to_string().as_str()) {
            return Err(InvalidReason::BadSignature);
        }
        let hmac = key_id.and_then(|id| self.keys.get(id)).ok_or(InvalidReason::BadSignature)?;
        let signature = from_hex(signature).ok_or(InvalidReason::BadSignature)?;
        // Compares in constant time.
        over(hmac, signed).verify_slice(&signature).map_err(|_| InvalidReason::BadSignature)?;
        // The signature is over the number, so it is the signer's; what it means is looked at after it.
        let expires_ms = signed.expires.saturating_mul(1_000);
        let longest_ms = i64::try_from(self.longest.as_millis()).unwrap_or(i64::MAX);
        if at.get() > expires_ms {
            return Err(InvalidReason::Expired);
        }
        if expires_ms.saturating_sub(at.get()) > longest_ms {
            return Err(InvalidReason::BadSignature);
        }
        Ok(())
    }
}

/// Signs a click. The key is of at least [`KEY_BYTES_MIN`] bytes.
///
/// # Errors
/// If it is shorter.
pub fn sign(key: &[u8], signed: &Signed<'_>) -> Result<String, KeyError> {
    if key.len() < KEY_BYTES_MIN {
        return Err(KeyError::Short { id: String::new(), bytes: key.len() });
    }
    let bytes = over(&keyed(key), signed).finalize().into_bytes();
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes a key of any length")
}

fn over(hmac: &Hmac<Sha256>, signed: &Signed<'_>) -> Hmac<Sha256> {
    let mut hmac = hmac.clone();
    let expires = signed.expires.to_string();
    let lines = ["tally-1", signed.impression_id, signed.ad_id, signed.campaign_id, signed.publisher_id, &expires];
    for line in lines {
        hmac.update(line.as_bytes());
        hmac.update(b"\n");
    }
    hmac
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let digits: Vec<u8> =
        text.bytes().map(|byte| (byte as char).to_digit(16).map(|digit| digit as u8)).collect::<Option<_>>()?;
    let mut bytes = [0; 32];
    if digits.len() != 64 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = pair[0] * 16 + pair[1];
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: &[u8] = b"0123456789abcdef0123456789abcdef";
    const HOUR: Duration = Duration::from_secs(3_600);
    /// 2026-04-20T12:00:00Z.
    const NOON: i64 = 1_776_686_400;

    fn signed() -> Signed<'static> {
        Signed { impression_id: "imp_1", ad_id: "ad_9", campaign_id: "cmp_7", publisher_id: "", expires: NOON }
    }

    fn given(signature: &str) -> [Option<&str>; 3] {
        [Some("1776686400"), Some("k1"), Some(signature)]
    }

    #[test]
    fn a_signature_is_good_for_its_time_and_no_other() {
        let keys = Keys::new([("k1", KEY), ("k2", &[7; 32][..])], HOUR).unwrap();
        let signature = sign(KEY, &signed()).unwrap();
        let check = |at_ms: i64, expected| {
            assert_eq!(keys.judge(&signed(), given(&signature), Millis::new(at_ms)), expected, "{at_ms}");
        };
        check(NOON * 1_000, Ok(()));
        check((NOON - 3_600) * 1_000, Ok(()));
        check(NOON * 1_000 + 1, Err(InvalidReason::Expired));
        check((NOON - 3_600) * 1_000 - 1, Err(InvalidReason::BadSignature));
        let at = Millis::new(NOON * 1_000);
        let unsigned = [None; 3];
        assert_eq!(keys.judge(&signed(), unsigned, at), Err(InvalidReason::Unsigned));
        let other = [given("")[0], Some("k2"), Some(&*signature)];
        assert_eq!(keys.judge(&signed(), other, at), Err(InvalidReason::BadSignature));
        assert_eq!(keys.judge(&signed(), given("ab"), at), Err(InvalidReason::BadSignature));
        assert_eq!(Keys::default().judge(&signed(), unsigned, at), Ok(()));
    }

    #[test]
    fn keys_that_are_none_are_refused_without_telling_them() {
        let check = |id: &str, key: &[u8], expected: &str| {
            assert_eq!(Keys::new([(id, key)], HOUR).unwrap_err().to_string(), expected);
        };
        check("k1", b"short", r#"key "k1" has 5 bytes, and must have at least 32"#);
        check("", KEY, r#"key id "" is not valid: 1 to 32 of the characters A-Z a-z 0-9 _ -"#);
        check("a b", KEY, r#"key id "a b" is not valid: 1 to 32 of the characters A-Z a-z 0-9 _ -"#);
        let twice = Keys::new([("k1", KEY), ("k2", KEY), ("k1", &[7; 32][..])], HOUR).unwrap_err().to_string();
        assert_eq!(twice, r#"key id "k1" is given twice: one key for each id"#);
        let keys = Keys::new([("k1", KEY)], HOUR).unwrap();
        let minute = Duration::from_secs(60);
        keys.check_horizon(HOUR, HOUR - minute, HOUR * 3).unwrap();
        assert!(keys.check_horizon(HOUR, HOUR, HOUR * 3).is_err(), "a minute is missing");
        assert!(keys.check_horizon(HOUR * 2, Duration::ZERO, HOUR * 3).is_err(), "a minute is missing");
        assert!(keys.check_horizon(Duration::MAX, HOUR, HOUR * 3).is_err());
        Keys::default().check_horizon(HOUR * 2, HOUR, HOUR).unwrap();
    }

    /// The vectors of the recipe.
    #[test]
    fn the_recipe_has_the_signatures_that_are_checked() {
        let recipe = include_str!("../../docs/signed-urls.md");
        let rows: Vec<Vec<&str>> = recipe
            .split_once("## Vectors")
            .unwrap()
            .1
            .lines()
            .filter(|line| line.starts_with("| `"))
            .map(|line| line.split('|').map(|cell| cell.trim().trim_matches('`')).collect())
            .collect();
        assert!(rows.len() >= 3);
        for row in rows {
            let [_, key, impression_id, ad_id, campaign_id, publisher_id, expires, signature, _] = row[..] else {
                panic!("{row:?}");
            };
            let signed = Signed { impression_id, ad_id, campaign_id, publisher_id, expires: expires.parse().unwrap() };
            assert_eq!(sign(key.as_bytes(), &signed).unwrap(), signature, "{row:?}");
        }
    }

    /// The recipes for a shell as they stand, where the machine has what they take.
    #[test]
    fn the_recipes_for_a_shell_make_the_same_signature() {
        for program in ["openssl", "python3"] {
            if !services::found(program) {
                return services::skip(program, "not in PATH").unwrap_or_default();
            }
        }
        let recipe = include_str!("../../docs/signed-urls.md");
        let scripts: Vec<&str> =
            recipe.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
        assert_eq!(scripts.len(), 2);
        let dir = tempfile::tempdir().unwrap();
        let key_file = dir.path().join("k1.key");
        std::fs::write(&key_file, KEY).unwrap();
        for script in scripts {
            let mut shell = std::process::Command::new("sh");
            shell.args(["-euc", script]).env("key_file", &key_file).env("key", str::from_utf8(KEY).unwrap());
            let values = [("impression", "imp_1"), ("ad", "ad_9"), ("campaign", "cmp_7"), ("publisher", "")];
            let output = shell.envs(values).env("exp", NOON.to_string()).output().unwrap();
            let printed = String::from_utf8(output.stdout).unwrap();
            let expected = sign(KEY, &signed()).unwrap();
            assert_eq!(printed, format!("{expected}\n"), "{}", String::from_utf8_lossy(&output.stderr));
        }
    }

    proptest! {
        #[test]
        fn a_signature_is_of_one_click_only(
            ids in prop::array::uniform4("[a-z:]{1,5}"), others in prop::array::uniform4("[a-z:]{1,5}"),
            expires in 0..5_i64, other in 0..5_i64,
        ) {
            let of = |ids: &'static [String; 4], expires| Signed {
                impression_id: &ids[0], ad_id: &ids[1], campaign_id: &ids[2], publisher_id: &ids[3], expires,
            };
            let same = ids == others && expires == other;
            let (ids, others) = (Box::leak(Box::new(ids)), Box::leak(Box::new(others)));
            let signature = sign(KEY, &of(ids, expires)).unwrap();
            let keys = Keys::new([("k1", KEY)], HOUR).unwrap();
            let text = other.to_string();
            let judged = keys.judge(&of(others, other), [Some(&*text), Some("k1"), Some(&*signature)], Millis::new(0));
            prop_assert_eq!(judged.is_ok(), same);
        }
    }
}
