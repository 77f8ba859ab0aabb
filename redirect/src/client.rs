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

/// The client's address, and the country that a trusted proxy says it is in.
///
/// Only a trusted peer is asked whom it speaks for, and only in the one header that it is known to write: another one may be
/// the client's own, which a proxy passes on. Each proxy adds whom it heard from at the end, so the client is the last one in
/// the list that is no trusted proxy itself: what stands before it was written by whoever wanted to.
pub(crate) fn address_and_country(settings: &Settings, peer: IpAddr, headers: &HeaderMap) -> (IpAddr, Option<Country>) {
    // A socket that listens on IPv6 shows an IPv4 client as `::ffff:a.b.c.d`: the same client, so the same address.
    let mut client = peer.to_canonical();
    if !settings.trusts(client) {
        return (client, None);
    }
    let name = &settings.forwarded_header;
    let entry = if name == header::FORWARDED { forwarded_for } else { address };
    let named: Vec<Option<IpAddr>> = entries(headers, name).map(entry).collect();
    for heard_from in named.into_iter().rev() {
        // What is no address ends the list: the proxy that wrote it is all that is known.
        let Some(heard_from) = heard_from else { break };
        client = heard_from;
        if !settings.trusts(client) {
            break;
        }
    }
    let country = settings
        .country_header
        .as_ref()
        .and_then(|name| headers.get(name))
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.trim().parse().ok());
    (client, country)
}

/// The entries of a list that may stand in several header lines.
fn entries<'h>(headers: &'h HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'h str> {
    // A line that is no text has one entry, which is no address.
    headers.get_all(name).iter().flat_map(|value| value.to_str().unwrap_or("?").split(','))
}

/// `for=192.0.2.1;proto=https`, `for="[2001:db8::1]:80"`.
fn forwarded_for(entry: &str) -> Option<IpAddr> {
    let mut pairs = entry.split(';').filter_map(|pair| pair.trim().split_once('='));
    let (_, node) = pairs.find(|(name, _)| name.eq_ignore_ascii_case("for"))?;
    address(node.trim_matches('"'))
}

/// An address, which some proxies write with a port, or in brackets.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().or_else(|_| text.parse::<SocketAddr>().map(|socket| socket.ip()));
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
            trusted_proxies: vec!["10.0.0.1/32".parse().unwrap(), "10.1.0.0/16".parse().unwrap()],
            country_header: Some(HeaderName::from_static("x-country")),
            ..Settings::default()
        };
        let other = Settings { forwarded_header: header::FORWARDED, ..settings.clone() };
        let check_with = |settings: &Settings, peer: &str, lines: &[(&'static str, &str)], expected: &str| {
            let lines: Vec<(&'static str, &[u8])> =
                lines.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
            let (ip, country) = address_and_country(settings, peer.parse().unwrap(), &headers(&lines));
            assert_eq!(
                format!("{ip} {}", country.map_or("-".into(), |country| country.to_string())),
                expected,
                "{lines:?}"
            );
        };
        let check =
            |peer: &str, lines: &[(&'static str, &str)], expected: &str| check_with(&settings, peer, lines, expected);
        let (xff, fwd, cc) = ("x-forwarded-for", "forwarded", "x-country");
        check("192.0.2.1", &[(xff, "203.0.113.7"), (cc, "DE")], "192.0.2.1 -");
        check("10.0.0.1", &[(xff, "203.0.113.7"), (cc, "de")], "203.0.113.7 DE");
        check("::ffff:10.0.0.1", &[(xff, "::ffff:203.0.113.7"), (cc, "DE")], "203.0.113.7 DE");
        check("10.0.0.1", &[(xff, "1.1.1.1, 203.0.113.7"), (cc, "Germany")], "203.0.113.7 -");
        check("10.0.0.1", &[(xff, "1.1.1.1"), (xff, "2.2.2.2 ,203.0.113.7:4711")], "203.0.113.7 -");
        check("10.0.0.1", &[(xff, "[2001:db8::1]:80"), (cc, "FR")], "2001:db8::1 FR");
        check("10.0.0.1", &[(xff, "1.1.1.1, unknown"), (cc, "FR")], "10.0.0.1 FR");
        check("10.0.0.1", &[(cc, "FR")], "10.0.0.1 FR");
        // Proxies behind proxies, as far as they are ours.
        check("10.0.0.1", &[(xff, "9.9.9.9, 203.0.113.7, 10.1.2.3")], "203.0.113.7 -");
        check("10.0.0.1", &[(xff, "10.1.0.9, 10.1.2.3")], "10.1.0.9 -");
        let forwarded =
            |peer: &str, lines: &[(&'static str, &str)], expected: &str| check_with(&other, peer, lines, expected);
        check("10.0.0.1", &[(fwd, "for=9.9.9.9"), (xff, "203.0.113.7")], "203.0.113.7 -");
        forwarded(
            "10.0.0.1",
            &[(fwd, "for=9.9.9.9, for=\"[2001:db8::1]:80\";proto=https, For=10.1.2.3")],
            "2001:db8::1 -",
        );
        forwarded("10.0.0.1", &[(fwd, "for=_hidden, for=10.1.2.3")], "10.1.2.3 -");
        forwarded("10.0.0.1", &[(fwd, "for=203.0.113.7"), (xff, "9.9.9.9")], "203.0.113.7 -");
        forwarded("10.0.0.1", &[(xff, "203.0.113.7")], "10.0.0.1 -");
        forwarded("10.0.0.1", &[(fwd, "proto=https")], "10.0.0.1 -");
    }
}
