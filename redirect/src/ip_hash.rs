//! What is kept of a client's address: a keyed hash that cannot be turned back, nor joined from day to day.

use click::{Invalid, Millis};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::fmt::{self, Write};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

/// The key that address hashes are made with. All redirects of one system have the same.
#[derive(Clone)]
pub struct Secret(Hmac<Sha256>);

impl Secret {
    /// There are 2^32 IPv4 addresses: a secret that can be guessed is no secret.
    pub const BYTES_MIN: usize = 16;

    /// Takes at least [`Self::BYTES_MIN`] bytes.
    pub fn new(bytes: &[u8]) -> Result<Self, Invalid> {
        if bytes.len() < Self::BYTES_MIN {
            // The secret itself must not stand in a message.
            let given = format!("of {} bytes", bytes.len());
            return Err(Invalid::new("secret for address hashes", &given, "at least 16 random bytes"));
        }
        Ok(Secret(keyed(bytes)))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes a key of any length")
}

/// Hashes addresses under the key of the day, which is HMAC-SHA256(secret, `YYYY-MM-DD`) of the UTC day.
pub(crate) struct IpHasher {
    secret: Secret,
    /// The last day asked for and its key, so that a click costs one HMAC and not two.
    of_day: Mutex<(i64, Hmac<Sha256>)>,
}

impl IpHasher {
    pub fn new(secret: Secret) -> Self {
        let of_day = Mutex::new((0, Self::key_of_day(&secret, Millis::new(0))));
        IpHasher { secret, of_day }
    }

    /// The first 128 bits, in hex, of HMAC-SHA256(key of the day, address as text).
    pub fn hash(&self, ip: IpAddr, at: Millis) -> String {
        let day = at.get().div_euclid(86_400_000);
        let mut hmac = {
            // Day and key are replaced together, so a panic elsewhere leaves them whole.
            let mut of_day = self.of_day.lock().unwrap_or_else(PoisonError::into_inner);
            if of_day.0 != day {
                *of_day = (day, Self::key_of_day(&self.secret, at));
            }
            of_day.1.clone()
        };
        // A hash takes any text.
        let _ = write!(Hashing(&mut hmac), "{ip}");
        let mut hex = String::with_capacity(32);
        for byte in hmac.finalize().into_bytes().iter().take(16) {
            for digit in [byte >> 4, byte & 15] {
                hex.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
            }
        }
        hex
    }

    fn key_of_day(secret: &Secret, at: Millis) -> Hmac<Sha256> {
        let mut hmac = secret.0.clone();
        let text = at.to_string();
        // `2026-04-20T…`: the date is what stands before the T.
        hmac.update(text.split('T').next().unwrap_or(&text).as_bytes());
        keyed(&hmac.finalize().into_bytes())
    }
}

/// Text that is hashed as it is written.
struct Hashing<'h>(&'h mut Hmac<Sha256>);

impl fmt::Write for Hashing<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.update(text.as_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values are those of `openssl dgst -sha256 -hmac`, see the commands beside them.
    #[test]
    fn hashes_are_those_that_others_compute() {
        let hasher = IpHasher::new(Secret::new(b"0123456789abcdef").unwrap());
        let check = |at: &str, ip: &str, expected: &str| {
            assert_eq!(hasher.hash(ip.parse().unwrap(), at.parse().unwrap()), expected, "{at} {ip}");
        };
        // K=$(printf 2026-04-20 | openssl dgst -sha256 -mac HMAC -macopt key:0123456789abcdef -r | cut -c1-64)
        // printf 203.0.113.7 | openssl dgst -sha256 -mac HMAC -macopt hexkey:$K -r | cut -c1-32
        check("2026-04-20T00:00:00Z", "203.0.113.7", "a4f688aded296ff1784e73c641a99404");
        check("2026-04-20T23:59:59.999Z", "203.0.113.7", "a4f688aded296ff1784e73c641a99404");
        check("2026-04-21T00:00:00Z", "203.0.113.7", "0194df473f8c8542cd51604ca5eb4ec0");
        check("2026-04-20T12:00:00Z", "2001:db8::1", "58f108ef1f2f62c2933e77c52506eba1");
        check("2026-04-20T12:00:00Z", "203.0.113.7", "a4f688aded296ff1784e73c641a99404");
    }

    #[test]
    fn a_short_secret_is_refused_and_none_is_shown() {
        let error = Secret::new(b"hunter2").unwrap_err().to_string();
        assert_eq!(error, r#"secret for address hashes "of 7 bytes" is not valid: at least 16 random bytes"#);
        assert_eq!(format!("{:?}", Secret::new(b"0123456789abcdef").unwrap()), "Secret(…)");
    }
}
