//! Signs URLs by the recipe of `docs/signed-urls.md`, and spoils signatures. It shares no code with the product: what is
//! eligible is known from what was signed, not from what the product says of it.

use click::Millis;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// The keys of a site under proof, as its configuration names them. Two, as while signers change from one to the other.
pub const KEYS: &str = "old:a-key-of-a-proof-0123456789abcdef new:another-key-of-a-proof-9876543210";
const OLD: (&str, &str) = ("old", "a-key-of-a-proof-0123456789abcdef");
const NEW: (&str, &str) = ("new", "another-key-of-a-proof-9876543210");

/// Seconds within which every request is judged, whatever its way.
const UNDER_WAY_S: i64 = 600;
/// Seconds that a signature may last: the redirect's default.
const LONGEST_S: i64 = 12 * 3_600;

/// What a URL's signature is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    Good,
    /// By the other key.
    GoodOld,
    Unsigned,
    /// One digit is another.
    Spoiled,
    /// It is that of another impression.
    OfAnother,
    /// By a key under the id of the other one.
    WrongKey,
    UnknownKey,
    /// Its time is over.
    Over,
    /// Its time is over, and the URL says a later one.
    Prolonged,
    /// It would last for longer than signatures may.
    TooLong,
}

impl Sign {
    /// Every way in which a signature is not good.
    pub const BAD: [Sign; 8] = [
        Sign::Unsigned,
        Sign::Spoiled,
        Sign::OfAnother,
        Sign::WrongKey,
        Sign::UnknownKey,
        Sign::Over,
        Sign::Prolonged,
        Sign::TooLong,
    ];

    /// By the definition: signed with a key that the site has, for this very click, and not over.
    pub fn is_good(self) -> bool {
        matches!(self, Sign::Good | Sign::GoodOld)
    }

    /// What follows a URL's `impression`, `ad`, `campaign` and `publisher` (empty if it names none) at a time.
    pub fn query(self, [impression, ad, campaign, publisher]: [&str; 4], now: Millis) -> String {
        let now_s = now.get().div_euclid(1_000);
        let good = now_s + UNDER_WAY_S;
        let signed_until = match self {
            // A clock that is ahead, and the time under way, only make it older.
            Sign::Over | Sign::Prolonged => now_s - 1,
            Sign::TooLong => now_s + LONGEST_S + UNDER_WAY_S,
            _ => good,
        };
        let (kid, key) = match self {
            Sign::GoodOld => OLD,
            Sign::WrongKey => (NEW.0, OLD.1),
            Sign::UnknownKey => ("none", NEW.1),
            _ => NEW,
        };
        let impression = if self == Sign::OfAnother { format!("{impression}-2") } else { impression.to_string() };
        let mut sig = sign(key, &[&impression, ad, campaign, publisher, &signed_until.to_string()]);
        match self {
            Sign::Unsigned => return String::new(),
            Sign::Spoiled => {
                let other = if sig.starts_with('0') { "1" } else { "0" };
                sig.replace_range(..1, other);
            }
            _ => {}
        }
        let exp = if self == Sign::Prolonged { good } else { signed_until };
        format!("&exp={exp}&kid={kid}&sig={sig}")
    }
}

fn sign(key: &str, lines: &[&str]) -> String {
    let mut hmac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("HMAC takes a key of any length");
    hmac.update(b"tally-1\n");
    for line in lines {
        hmac.update(line.as_bytes());
        hmac.update(b"\n");
    }
    hmac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn it_signs_by_the_recipe() {
    let text = include_str!("../../docs/signed-urls.md");
    let mut vectors = 0;
    for line in text.lines().skip_while(|line| !line.starts_with("## Vectors")).filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        let [key, impression, ad, campaign, publisher, exp, sig] = cells[..] else { panic!("{line}") };
        assert_eq!(sign(key, &[impression, ad, campaign, publisher, exp]), sig, "{line}");
        vectors += 1;
    }
    assert_eq!(vectors, 3);
}
