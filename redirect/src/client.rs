//! What socket and headers tell of the client. Headers are believed where nothing depends on them (the user agent), or
//! where a trusted proxy wrote them (address and country).

use crate::settings::Settings;
use axum::http::{HeaderMap, HeaderName, header};
use click::Country;
use std::net::{IpAddr, SocketAddr};

/// Longest user agent that is kept. Those of real browsers are under 300 bytes.
const USER_AGENT_BYTES_MAX: usize = 1_024;

/// The headers in which browsers say that nobody clicked yet.
const PURPOSE_HEADERS: [HeaderName; 4] = [
    HeaderName::from_static("sec-purpose"),
    HeaderName::from_static("purpose"),
    HeaderName::from_static("x-purpose"),
    HeaderName::from_static("x-moz"),
];

/// Whether a browser fetches the page in case the person would click later: `prefetch`, `prefetch;prerender`,
/// `preview` and their like.
pub(crate) fn is_prefetch(headers: &HeaderMap) -> bool {
    let ahead = |token: &str| {
        let token = token.trim();
        ["prefetch", "prerender", "preview"].iter().any(|name| token.eq_ignore_ascii_case(name))
    };
    PURPOSE_HEADERS
        .iter()
        .flat_map(|name| headers.get_all(name))
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.split([';', ',']).any(ahead))
}

/// The user agent as valid UTF-8, cut at a character.
pub(crate) fn user_agent(headers: &HeaderMap) -> String {
    let bytes = headers.get(header::USER_AGENT).map_or(&[] as &[u8], |value| value.as_bytes());
    let text = String::from_utf8_lossy(bytes);
    text[..text.floor_char_boundary(USER_AGENT_BYTES_MAX)].to_owned()
}

/// The client's address, and its country.
pub(crate) fn address_and_country(settings: &Settings, peer: IpAddr, headers: &HeaderMap) -> (IpAddr, Country) {
    // A socket that listens on IPv6 shows an IPv4 client as `::ffff:a.b.c.d`: the same client, so the same address.
    let peer = peer.to_canonical();
    if !settings.trusts(peer) {
        return (peer, Country::UNKNOWN);
    }
    // What stands before the last entry was written by whoever talked to the proxy.
    let forwarded = headers
        .get_all("x-forwarded-for")
        .iter()
        .next_back()
        .and_then(|value| value.to_str().ok())
        .and_then(|value| address(value.rsplit(',').next().unwrap_or(value).trim()));
    let country = settings
        .country_header
        .as_ref()
        .and_then(|name| headers.get(name))
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.trim().parse().ok());
    (forwarded.unwrap_or(peer), country.unwrap_or(Country::UNKNOWN))
}

/// An address, which some proxies write with a port.
fn address(text: &str) -> Option<IpAddr> {
    let address = text.parse().or_else(|_| text.parse::<SocketAddr>().map(|socket| socket.ip()));
    address.ok().map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &[u8])]) -> HeaderMap {
        let value = |bytes| axum::http::HeaderValue::from_bytes(bytes).unwrap();
        lines.iter().map(|(name, bytes)| (HeaderName::from_static(name), value(*bytes))).collect()
    }

    #[test]
    fn prefetches_are_known_by_their_headers() {
        let check = |name, value: &str, expected| {
            assert_eq!(is_prefetch(&headers(&[(name, value.as_bytes())])), expected, "{name}: {value}");
        };
        check("sec-purpose", "prefetch", true);
        check("sec-purpose", "prefetch;prerender", true);
        check("sec-purpose", "prefetch;anonymous-client-ip", true);
        check("purpose", "Prefetch", true);
        check("x-purpose", "preview", true);
        check("x-moz", "prefetch", true);
        check("sec-purpose", "prefetched", false);
        check("sec-fetch-mode", "prefetch", false);
        check("purpose", "", false);
    }

    #[test]
    fn a_user_agent_is_cut_at_a_character() {
        let check = |bytes: &[u8], expected: &str| assert_eq!(user_agent(&headers(&[("user-agent", bytes)])), expected);
        check(b"Mozilla/5.0", "Mozilla/5.0");
        check(b"a\xffb", "a\u{fffd}b");
        check(&b"x".repeat(2_000), &"x".repeat(1_024));
        check(format!("x{}", "é".repeat(1_000)).as_bytes(), &format!("x{}", "é".repeat(511)));
        assert_eq!(user_agent(&HeaderMap::new()), "");
    }

    #[test]
    fn only_a_trusted_proxy_speaks_for_a_client() {
        let settings = Settings {
            trusted_proxies: vec!["10.0.0.1".parse().unwrap()],
            country_header: Some(HeaderName::from_static("x-country")),
            ..Settings::default()
        };
        let check = |peer: &str, forwarded: &[&str], country: &str, expected: &str| {
            let mut lines: Vec<(&'static str, &[u8])> =
                forwarded.iter().map(|value| ("x-forwarded-for", value.as_bytes())).collect();
            lines.push(("x-country", country.as_bytes()));
            let (ip, country) = address_and_country(&settings, peer.parse().unwrap(), &headers(&lines));
            assert_eq!(format!("{ip} {country}"), expected);
        };
        check("192.0.2.1", &["203.0.113.7"], "DE", "192.0.2.1 ZZ");
        check("10.0.0.1", &["203.0.113.7"], "de", "203.0.113.7 DE");
        check("::ffff:10.0.0.1", &["::ffff:203.0.113.7"], "DE", "203.0.113.7 DE");
        check("10.0.0.1", &["1.1.1.1, 203.0.113.7"], "Germany", "203.0.113.7 ZZ");
        check("10.0.0.1", &["1.1.1.1", "2.2.2.2 ,203.0.113.7:4711"], "", "203.0.113.7 ZZ");
        check("10.0.0.1", &["[2001:db8::1]:80"], "FR", "2001:db8::1 FR");
        check("10.0.0.1", &["1.1.1.1, unknown"], "FR", "10.0.0.1 FR");
        check("10.0.0.1", &[], "FR", "10.0.0.1 FR");
    }
}
