/*
[dependencies]
isbot = "=0.1.3"
regex = "1"
*/
use arroyo_udf_plugin::udf;
use isbot::Bots;
use regex::Regex;
use std::sync::LazyLock;

// Programs that drive a browser's engine and say so.
static HEADLESS: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?i)headless|phantomjs|slimerjs|selenium|webdriver|playwright|puppeteer|wkhtmlto")
        .expect("a constant pattern, compiled by every test")
});

// What a program says of itself, by the custom that crawlers keep, and a browser never says: what it does (but Cubot
// makes phones), an address of its makers, "compatible;" before a name of its own (of the browsers only MSIE and
// Konqueror wrote it), or a name of its own after "like Gecko;".
static DECLARED: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(concat!(
        r"(?i)(?:^|[^u])bots?(?:(?-u:\b)|_)|(?:^|[^c])ubots?(?:(?-u:\b)|_)|crawl|spider",
        r"|monitor|synthetic|scan(?:ner)?(?-u:\b)|checker|preview|inspector|lighthouse",
        r"|https?:|www\.|mailto:|@[a-z-]+\.",
        r"|(?-i:compatible; ?(?:[^MK ;]|M[^S]|K[^o])|like Gecko; ?[A-Za-z])",
    ))
    .expect("a constant pattern, compiled by every test")
});

// The engines that show pages, and what the phones before them wrote. Every browser names one.
static ENGINE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(concat!(
        r"(?i)webkit|gecko|khtml|trident|msie|presto|servo|goanna|^opera|konqueror",
        r"|ucweb|ucbrowser|hbbtv|midp|up\.browser|obigo|netfront|docomo",
    ))
    .expect("a constant pattern, compiled by every test")
});

// Crawlers that otherwise look like browsers. Left out are patterns that people's browsers and phones match: those of
// Sogou, QQ, Sputnik and DM, a bank's Internet Explorer, and the words around "bot", which DECLARED has, without Cubot.
static LISTED: LazyLock<Bots> = LazyLock::new(|| {
    let mut list = Bots::default();
    list.remove(&["sogou", "qqdownload", "sputnik", "dmbrowser", "banca caboto", r"bot($|[/\);-]+)", r"[ ]+bot"]);
    list
});

/// Why a click of this user agent is not billed; NULL for a person's.
///
/// - `no_user_agent`: NULL, blank or `-`. Every browser has one.
/// - `headless`: a program drives the browser (HeadlessChrome, PhantomJS, Selenium).
/// - `bot`: a crawler, monitor, scanner or preview, by its own word or by the list.
/// - `tool`: an HTTP library or command (curl, wget, python-requests, okhttp), an app's own HTTP calls (Dalvik,
///   CFNetwork), and whatever else names no engine that could show the page.
#[udf]
pub fn bot_reason(user_agent: Option<&str>) -> Option<String> {
    reason(user_agent.unwrap_or_default().trim()).map(str::to_string)
}

fn reason(agent: &str) -> Option<&'static str> {
    match agent {
        "" | "-" => Some("no_user_agent"),
        _ if HEADLESS.is_match(agent) => Some("headless"),
        _ if DECLARED.is_match(agent) => Some("bot"),
        _ if !ENGINE.is_match(agent) => Some("tool"),
        _ if LISTED.is_bot(agent) => Some("bot"),
        _ => None,
    }
}
