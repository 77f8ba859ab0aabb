//! Query parameters that an ad lets through to its landing page, such as `gclid` and `utm_*`.

use crate::url::name_of;
use click::Invalid;
use std::str::FromStr;

/// Longest `Location` that parameters are added to. Browsers and servers cut at about this length; what no longer fits is
/// left out.
const LOCATION_BYTES_MAX: usize = 8_192;
/// Most names of one ad.
const NAMES_MAX: usize = 64;

const ALLOWED: &str =
    "at most 64 names of the characters A-Z a-z 0-9 _ - . parted by spaces, a * at the end for all that begin so";

/// Names of parameters, a `*` at the end standing for any rest.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Allowed(Box<str>);

impl FromStr for Allowed {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let fits = |name: &str| {
            let name = name.strip_suffix('*').unwrap_or(name);
            name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
        };
        let names: Vec<&str> = text.split_whitespace().collect();
        if names.len() > NAMES_MAX || !names.iter().all(|name| fits(name)) {
            return Err(Invalid::new("parameters", text, ALLOWED));
        }
        Ok(Allowed(names.join(" ").into()))
    }
}

impl Allowed {
    fn allows(&self, name: &str) -> bool {
        self.0.split(' ').any(|allowed| match allowed.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => name == allowed,
        })
    }

    /// Adds what is allowed of a request's query to a URL, before its fragment.
    pub(crate) fn pass(&self, query: &str, location: &mut String) {
        let fragment = location.find('#').unwrap_or(location.len());
        let (page, fragment) = (location[..fragment].to_owned(), location[fragment..].to_owned());
        let own = page.split_once('?').map_or("", |(_, query)| query);
        let mut added = String::new();
        for pair in query.split('&') {
            // What nobody can read is nobody's parameter.
            let Some(name) = name_of(pair).filter(|name| self.allows(name)) else { continue };
            // There are servers that part a query at `;` as well: the page's own key is its own to either kind.
            if own.split(['&', ';']).any(|pair| name_of(pair).as_deref() == Some(&*name)) {
                continue;
            }
            let before = added.len();
            let begins = added.is_empty() && !page.contains('?');
            added.push(if begins { '?' } else { '&' });
            encode(pair, &mut added);
            if location.len() + added.len() > LOCATION_BYTES_MAX {
                added.truncate(before);
                break;
            }
        }
        *location = page + &added + &fragment;
    }
}

/// Copies a pair of a query, and encodes what has no business in one. Nothing in it can end the query, or be a second pair to
/// the servers that part them at `;`, as HTML 4 had it.
fn encode(pair: &str, to: &mut String) {
    for (at, byte) in pair.bytes().enumerate() {
        let is_escape =
            || pair.as_bytes()[at + 1..].iter().take(2).filter(|digit| digit.is_ascii_hexdigit()).count() == 2;
        let stays = byte.is_ascii_alphanumeric() || b"-._~!$'()*+,:@/?=".contains(&byte) || byte == b'%' && is_escape();
        if stays {
            to.push(char::from(byte));
        } else {
            to.push_str(&format!("%{byte:02X}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn passed(allowed: &str, page: &str, query: &str) -> String {
        let mut location = page.to_owned();
        allowed.parse::<Allowed>().unwrap().pass(query, &mut location);
        location
    }

    #[test]
    fn what_is_allowed_is_passed_on_and_the_pages_own_keys_win() {
        let check = |page: &str, query: &str, expected: &str| {
            assert_eq!(passed("gclid utm_*", page, query), expected, "{page} {query}");
        };
        check("https://h/a", "gclid=1&x=2&utm_source=y%20z", "https://h/a?gclid=1&utm_source=y%20z");
        check("https://h/a?b=1", "utm_a=&utm_b", "https://h/a?b=1&utm_a=&utm_b");
        check("https://h/a?gclid=0#f", "gclid=1&utm_a=2", "https://h/a?gclid=0&utm_a=2#f");
        check("https://h/a?%67clid=0", "gclid=1", "https://h/a?%67clid=0");
        check("https://h/a?b=1;gclid=0", "gclid=1&utm_a=2", "https://h/a?b=1;gclid=0&utm_a=2");
        check("https://h/a?gclid=0;b=1#f", "gclid=1", "https://h/a?gclid=0;b=1#f");
        check("https://h/a#f", "%67clid=1", "https://h/a?%67clid=1#f");
        check("https://h/a", "gclid=%zz&utm_x=%4", "https://h/a?gclid=%25zz&utm_x=%254");
        check("https://h/a", "", "https://h/a");
        check("https://h/a", "xgclid=1&GCLID=1&utm=1", "https://h/a");
        check("https://h/a", "gclid=1;next=//evil&utm_a=;", "https://h/a?gclid=1%3Bnext=//evil&utm_a=%3B");
        check("https://h/a", "gclid=http://evil.example/?#x", "https://h/a?gclid=http://evil.example/?%23x");
    }

    #[test]
    fn a_location_has_an_end() {
        let long = format!("utm_a={}&utm_b=1", "x".repeat(LOCATION_BYTES_MAX));
        assert_eq!(passed("utm_*", "https://h/a", &long), "https://h/a");
        assert_eq!(passed("utm_*", "https://h/a", "utm_b=1"), "https://h/a?utm_b=1");
    }

    #[test]
    fn names_that_are_none_are_refused() {
        for wrong in ["a&b", "*a", "a*b", "ä"] {
            assert_eq!(wrong.parse::<Allowed>().unwrap_err().allowed, ALLOWED, "{wrong}");
        }
        assert!("x ".repeat(65).parse::<Allowed>().is_err());
        assert!(passed("*", "https://h/", "anything=1").ends_with("?anything=1"));
    }

    proptest! {
        #[test]
        fn nothing_in_a_request_chooses_where_a_browser_is_sent(query in "[ -~]{0,80}") {
            let location = passed("*", "https://shop.example/a/b?c=1#d", &query);
            prop_assert!(location.starts_with("https://shop.example/a/b?c=1"));
            prop_assert!(location.ends_with("#d"));
            prop_assert_eq!(location.matches('#').count(), 1);
            prop_assert!(!location.contains(';'));
            let uri: axum::http::Uri = location.parse().unwrap();
            prop_assert_eq!(uri.authority().unwrap().as_str(), "shop.example");
            prop_assert_eq!(uri.path(), "/a/b");
        }
    }
}
