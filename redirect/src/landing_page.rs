//! Landing pages: a registered URL with macros.

use crate::pass::Allowed;
use axum::http::{HeaderValue, Uri};
use click::{ClickId, ImpressionId, Invalid};

/// Longest landing page that is taken, macros not yet filled in. Browsers and proxies cut near this length.
const LANDING_PAGE_BYTES_MAX: usize = 2_048;

const URL_ALLOWED: &str = "an absolute http or https URL of at most 2048 printable ASCII characters, with a host";
const MACROS_ALLOWED: &str = "the macros {click_id}, {impression_id}, {ad_id}, {campaign_id} and {publisher_id}, \
     after the host; {impression_id} only in the query or the fragment";

/// The page behind an ad. What a click adds to it is percent-encoded and stands after the host: no request can send a
/// browser to another site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LandingPage(Box<[Part]>);

/// A landing page is a row of these. Macros that are the same for every click of an ad are text by now.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    ClickId,
    ImpressionId,
}

impl LandingPage {
    /// Parses a landing page. `known` are the macros whose values do not change from click to click.
    pub fn parse(text: &str, known: &[(&str, &str)]) -> Result<Self, Invalid> {
        let invalid = |allowed| Invalid::new("landing page", text, allowed);
        let printable = text.bytes().all(|b| b.is_ascii_graphic() && !br#""<>\^`|"#.contains(&b));
        if text.len() > LANDING_PAGE_BYTES_MAX || !printable {
            return Err(invalid(URL_ALLOWED));
        }
        let mut parts = Written::default();
        let mut rest = text;
        while let Some(open) = rest.find(['{', '}']) {
            let (before, from_brace) = rest.split_at(open);
            parts.text.push_str(before);
            let (name, after) = from_brace
                .strip_prefix('{')
                .and_then(|inner| inner.split_once('}'))
                .ok_or_else(|| invalid(MACROS_ALLOWED))?;
            let so_far = &text[..text.len() - from_brace.len()];
            // A macro in the host would choose the site; `..` in the path, which is a well-formed impression id,
            // would choose the page.
            let host_is_over = so_far.split_once("://").is_some_and(|(_, rest)| rest.contains(['/', '?', '#']));
            let path_is_over = so_far.contains(['?', '#']);
            match (name, known.iter().find(|(known, _)| *known == name)) {
                _ if !host_is_over => return Err(invalid(MACROS_ALLOWED)),
                (_, Some((_, value))) => parts.text.push_str(&encoded(value)),
                ("click_id", _) => parts.push(Part::ClickId),
                ("impression_id", _) if path_is_over => parts.push(Part::ImpressionId),
                _ => return Err(invalid(MACROS_ALLOWED)),
            }
            rest = after;
        }
        parts.text.push_str(rest);
        let page = LandingPage(parts.end());
        let uri: Uri = page.written("0", "0").parse().map_err(|_| invalid(URL_ALLOWED))?;
        let absolute = matches!(uri.scheme_str(), Some("http" | "https"));
        if !absolute || uri.host().is_none_or(str::is_empty) {
            return Err(invalid(URL_ALLOWED));
        }
        Ok(page)
    }

    /// Where this click goes, as the value of `Location`. Of the request's query, what `allowed` names is added, in its
    /// order, unless the page has a key of that name.
    pub fn location(
        &self,
        click_id: ClickId,
        impression_id: &ImpressionId,
        allowed: Option<&Allowed>,
        query: &str,
    ) -> HeaderValue {
        let mut location = self.written(&click_id.to_string(), &encoded(impression_id.as_str()));
        if let Some(allowed) = allowed {
            allowed.pass(query, &mut location);
        }
        HeaderValue::try_from(location).expect("the text was checked to be printable ASCII, and ids are")
    }

    fn written(&self, click_id: &str, impression_id: &str) -> String {
        let mut written = String::with_capacity(256);
        for part in &self.0 {
            written.push_str(match part {
                Part::Text(text) => text,
                Part::ClickId => click_id,
                Part::ImpressionId => impression_id,
            });
        }
        written
    }
}

/// Parts as they come: text is one piece until a macro follows.
#[derive(Default)]
struct Written {
    parts: Vec<Part>,
    text: String,
}

impl Written {
    fn push(&mut self, part: Part) {
        self.end_text();
        self.parts.push(part);
    }

    fn end_text(&mut self) {
        if !self.text.is_empty() {
            self.parts.push(Part::Text(std::mem::take(&mut self.text).into()));
        }
    }

    fn end(mut self) -> Box<[Part]> {
        self.end_text();
        self.parts.into()
    }
}

/// An id as it stands in a URL. Of the characters an id can have, only the colon is reserved.
fn encoded(id: &str) -> String {
    id.replace(':', "%3A")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: [(&str, &str); 3] = [("ad_id", "ad:9"), ("campaign_id", "cmp_7"), ("publisher_id", "pub_4")];

    #[test]
    fn macros_are_filled_in_and_encoded() {
        let check = |page: &str, expected: &str| {
            let id: ClickId = "018f0000-0000-7000-8000-000000000000".parse().unwrap();
            let page = LandingPage::parse(page, &KNOWN).unwrap();
            assert_eq!(page.location(id, &"imp:1".parse().unwrap(), None, "gclid=1"), expected);
        };
        check("https://shop.example/a?b=%20#c", "https://shop.example/a?b=%20#c");
        check("https://shop.example?i={impression_id}", "https://shop.example?i=imp%3A1");
        check(
            "http://h:8082/{campaign_id}/{click_id}/x?a={ad_id}&p={publisher_id}{ad_id}",
            "http://h:8082/cmp_7/018f0000-0000-7000-8000-000000000000/x?a=ad%3A9&p=pub_4ad%3A9",
        );
        check("http://[::1]:1/#{impression_id}", "http://[::1]:1/#imp%3A1");
    }

    #[test]
    fn what_could_send_a_browser_elsewhere_is_refused() {
        let long = format!("http://h/{}", "a".repeat(LANDING_PAGE_BYTES_MAX));
        for (page, allowed) in [
            ("", URL_ALLOWED),
            ("/path", URL_ALLOWED),
            ("shop.example/x", URL_ALLOWED),
            ("//shop.example/x", URL_ALLOWED),
            ("ftp://shop.example/", URL_ALLOWED),
            ("javascript:alert(1)", URL_ALLOWED),
            ("http://", URL_ALLOWED),
            ("http:///x", URL_ALLOWED),
            ("http://h/a b", URL_ALLOWED),
            ("http://h/\r\nSet-Cookie:x", URL_ALLOWED),
            ("http://h/ä", URL_ALLOWED),
            (&long, URL_ALLOWED),
            ("http://{impression_id}/", MACROS_ALLOWED),
            ("http://{ad_id}.example/", MACROS_ALLOWED),
            ("{ad_id}://h/", MACROS_ALLOWED),
            ("http://h/{impression_id}/x", MACROS_ALLOWED),
            ("http://h/?x={time}", MACROS_ALLOWED),
            ("http://h/?x={click_id", MACROS_ALLOWED),
            ("http://h/?x=click_id}", MACROS_ALLOWED),
            ("http://h/?x={}", MACROS_ALLOWED),
        ] {
            assert_eq!(LandingPage::parse(page, &KNOWN).unwrap_err().allowed, allowed, "{page}");
        }
    }
}
