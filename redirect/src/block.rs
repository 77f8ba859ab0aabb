//! Block rules: networks and headers whose clicks are not billed. Addresses are not stored, so this is the one place where
//! they can be judged.
//!
//! A file of lines. `#` begins a comment at the start of a line, and after the white space that ends a `net`. Within a header
//! rule there is none: what looks like one could be meant as text, and a text that is lost blocks everybody who sends the
//! header. `net CIDR` blocks a network, such as a data centre's; an address alone is a network
//! of one. `header NAME TEXT` blocks requests whose header of this name has the text in it, upper and lower case alike;
//! without TEXT, those that have the header at all.

use crate::networks::network;
use crate::reload::{LoadError, Reloaded};
use axum::http::{HeaderMap, HeaderName};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

/// Most bytes of a file: some hundred thousand networks.
const FILE_BYTES_MAX: u64 = 64 << 20;

const ALLOWED: &str =
    "`net CIDR`, with a comment after ` #` or without, `header NAME TEXT`, a comment that begins with #, or nothing";

/// The rules of a file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Blocks {
    /// First and last address of each network, as IPv6, sorted; no two of them touch.
    networks: Vec<(u128, u128)>,
    headers: Vec<(HeaderName, String)>,
}

/// Why a file is refused as a whole.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    #[error("block rules: {0}")]
    Io(#[from] std::io::Error),
    #[error("block rules {file} line {line}: {what}, given {given:?}; a line is {ALLOWED}")]
    Line { file: String, line: usize, what: &'static str, given: String },
}

impl LoadError for BlockError {
    fn io(&self) -> Option<&std::io::Error> {
        match self {
            BlockError::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl Blocks {
    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read, or names the first line that is no rule.
    pub fn load(path: &Path) -> Result<Blocks, BlockError> {
        let file = path.display().to_string();
        let named = |error: std::io::Error| std::io::Error::new(error.kind(), format!("{file}: {error}"));
        if std::fs::metadata(path).map_err(named)?.len() > FILE_BYTES_MAX {
            return Err(named(std::io::Error::other(format!("more than {FILE_BYTES_MAX} bytes"))).into());
        }
        Self::parse(&file, &std::fs::read_to_string(path).map_err(named)?)
    }

    /// The rules of a file, loaded again when it changes; none without a file.
    ///
    /// # Errors
    /// As for [`Blocks::load`].
    pub fn follow(path: Option<&Path>) -> Result<Arc<Reloaded<Blocks>>, BlockError> {
        match path {
            Some(path) => Reloaded::open(path, "block rules", Blocks::load),
            None => Ok(Reloaded::fixed("block rules", Blocks::default())),
        }
    }

    /// Parses the text of a file, which `file` names in errors.
    ///
    /// # Errors
    /// Names the first line that is no rule.
    pub fn parse(file: &str, text: &str) -> Result<Blocks, BlockError> {
        let (mut networks, mut headers) = (Vec::new(), Vec::new());
        for (number, line) in text.lines().enumerate() {
            let rule = line.trim();
            let wrong = |what| BlockError::Line {
                file: file.into(),
                line: number + 1,
                what,
                given: line.chars().take(120).collect(),
            };
            let (kind, rest) = rule.split_once(char::is_whitespace).unwrap_or((rule, ""));
            match (kind, rest.trim()) {
                ("", _) => {}
                (comment, _) if comment.starts_with('#') => {}
                ("net", network) => {
                    let network = comment(network).map_or(network, |at| network[..at].trim_end());
                    networks.push(range(network).ok_or_else(|| wrong("no network"))?);
                }
                // Neither is safe to guess: as a comment it may cut the text, as text it may match nobody.
                ("header", header) if comment(header).is_some() => {
                    return Err(wrong("a # after white space, which in a header rule is neither text nor comment"));
                }
                ("header", header) => {
                    let (name, text) = header.split_once(char::is_whitespace).unwrap_or((header, ""));
                    let name = name.parse().map_err(|_| wrong("no name of a header"))?;
                    headers.push((name, text.trim().to_ascii_lowercase()));
                }
                _ => return Err(wrong("no such rule")),
            }
        }
        Ok(Blocks { networks: merged(networks), headers })
    }

    /// Whether a rule blocks this client.
    pub fn block(&self, address: IpAddr, headers: &HeaderMap) -> bool {
        let address = as_number(address);
        let after = self.networks.partition_point(|(first, _)| *first <= address);
        let in_network = after.checked_sub(1).is_some_and(|at| address <= self.networks[at].1);
        in_network
            || self
                .headers
                .iter()
                .any(|(name, text)| headers.get_all(name).iter().any(|value| has(value.as_bytes(), text)))
    }

    /// Networks, those that touch taken as one, and header rules.
    pub fn counts(&self) -> (usize, usize) {
        (self.networks.len(), self.headers.len())
    }
}

/// Where `#` begins a word.
fn comment(text: &str) -> Option<usize> {
    let begins = |at: &usize| *at == 0 || text[..*at].ends_with(char::is_whitespace);
    text.match_indices('#').map(|(at, _)| at).find(begins)
}

fn has(value: &[u8], text: &str) -> bool {
    text.is_empty() || value.windows(text.len()).any(|part| part.eq_ignore_ascii_case(text.as_bytes()))
}

/// IPv4 addresses stand in IPv6 as `::ffff:a.b.c.d`, which is how sockets show them.
fn as_number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_ipv6_mapped()),
        IpAddr::V6(address) => u128::from(address),
    }
}

fn range(text: &str) -> Option<(u128, u128)> {
    let network = network(text)?;
    Some((as_number(network.network()), as_number(network.broadcast())))
}

fn merged(mut networks: Vec<(u128, u128)>) -> Vec<(u128, u128)> {
    networks.sort_unstable();
    let mut merged: Vec<(u128, u128)> = Vec::with_capacity(networks.len());
    for (first, last) in networks {
        match merged.last_mut() {
            Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
            _ => merged.push((first, last)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;
    use ipnet::IpNet;
    use proptest::prelude::*;

    const RULES: &str = "
        # Data centres
        net 10.0.0.0/8     # one
        net 203.0.113.7
        net 2001:db8::/32
        header X-Scanner
        header User-Agent  Evil Bot
        header User-Agent a#b  c
    ";

    fn blocked(rules: &str, address: &str, header: Option<(&'static str, &str)>) -> bool {
        let mut headers = HeaderMap::new();
        if let Some((name, value)) = header {
            headers.insert(name, HeaderValue::from_str(value).unwrap());
        }
        Blocks::parse("rules", rules).unwrap().block(address.parse().unwrap(), &headers)
    }

    #[test]
    fn networks_and_headers_are_blocked() {
        let check = |address, header, expected| {
            assert_eq!(blocked(RULES, address, header), expected, "{address} {header:?}");
        };
        check("10.0.0.0", None, true);
        check("10.255.255.255", None, true);
        check("11.0.0.0", None, false);
        check("9.255.255.255", None, false);
        check("203.0.113.7", None, true);
        check("203.0.113.8", None, false);
        check("2001:db8:ffff::1", None, true);
        check("2001:db9::", None, false);
        check("192.0.2.1", Some(("x-scanner", "")), true);
        check("192.0.2.1", Some(("user-agent", "an EVIL bot of some kind")), true);
        check("192.0.2.1", Some(("user-agent", "a good one")), false);
        check("192.0.2.1", Some(("user-agent", "an A#B  C")), true);
    }

    #[test]
    fn a_line_that_is_no_rule_is_named() {
        let check = |rules: &str, expected: &str| {
            let error = Blocks::parse("rules", rules).unwrap_err().to_string();
            assert_eq!(error, format!("block rules rules {expected}; a line is {ALLOWED}"));
        };
        check("\nnet 10.0.0.0/33", "line 2: no network, given \"net 10.0.0.0/33\"");
        check("net", "line 1: no network, given \"net\"");
        check("header a:b x", "line 1: no name of a header, given \"header a:b x\"");
        check("net 10.0.0.1#x", "line 1: no network, given \"net 10.0.0.1#x\"");
        check("net # 10.0.0.1", "line 1: no network, given \"net # 10.0.0.1\"");
        for cut in
            ["header User-Agent #bot", "header User-Agent a bot # one", "header X-Scanner\t#", "header # X-Scanner"]
        {
            let what = "a # after white space, which in a header rule is neither text nor comment";
            check(cut, &format!("line 1: {what}, given {cut:?}"));
        }
        check("deny 10.0.0.1", "line 1: no such rule, given \"deny 10.0.0.1\"");
    }

    proptest! {
        #[test]
        fn merging_changes_nothing(
            networks in prop::collection::vec((any::<u8>(), any::<u8>(), 8..=32_u8), 0..20),
            probes in prop::collection::vec((any::<u8>(), any::<u8>()), 20),
        ) {
            let networks: Vec<IpNet> = networks
                .into_iter()
                .map(|(a, b, bits)| format!("{a}.{b}.0.0/{bits}").parse::<IpNet>().unwrap().trunc())
                .collect();
            let rules: String = networks.iter().map(|network| format!("net {network}\n")).collect();
            let blocks = Blocks::parse("rules", &rules).unwrap();
            for (a, b) in probes {
                let address = IpAddr::from([a, b, 0, 0]);
                let expected = networks.iter().any(|network| network.contains(&address));
                prop_assert_eq!(blocks.block(address, &HeaderMap::new()), expected);
            }
        }
    }
}
