/*
[dependencies]
regex = "1"
*/
use arroyo_udf_plugin::udf;
use regex::Regex;
use std::sync::LazyLock;

// Consoles, headsets, cars and watches. They come first, since most also name the system of a phone or a desktop.
static OTHER: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?i)xbox|playstation|nintendo|oculusbrowser|picobrowser|qtcarbrowser|tesla/|watch")
        .expect("a constant pattern, compiled by every test")
});

// Televisions, sticks and set-top boxes: the platforms' own words (HbbTV, Tizen and webOS televisions, Fire TV's AFT
// models, Chromecast, Opera's TV store) and the word itself.
static TV: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(concat!(
        r"(?i)tv(?-u:\b)|tv[0-9_]|web0s|bravia|crkey|roku|netcast|aquos|viera|vidaa|set-?top",
        r"|(?-i:(?-u:\b)AFT[A-Z0-9]+(?-u:\b)|OMI/|Linux mips)",
    ))
    .expect("a constant pattern, compiled by every test")
});

// Tablets that say so. They matter where "Mobile" stands as well: many Android tablets claim to be phones.
static TABLET: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(concat!(
        r"(?i)tablet(?: ?[^p ]|$)|ipad|playbook|kindle|mediapad|matepad|(?-u:\b)(?:pad|tab)(?-u:\b)|tab[0-9_-]",
        r"|(?-u:\b)SM-[TXP][0-9]",
    ))
    .expect("a constant pattern, compiled by every test")
});

static PHONE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?i)mobile|iphone|ipod|windows phone|opera mini|midp|blackberry|kaios|symbian|up\.browser|docomo")
        .expect("a constant pattern, compiled by every test")
});

static DESKTOP: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"(?i)windows|macintosh|mac os|cros|chromebook|x11|linux")
        .expect("a constant pattern, compiled by every test")
});

/// The kind of device, one of `desktop`, `mobile`, `tablet`, `tv` and `other`; never NULL. Consoles, headsets, cars,
/// watches and what cannot be told are `other`.
///
/// Android's rule for browsers decides between phone and tablet: a phone says "Mobile", a tablet does not. An iPad that
/// asks for desktop pages, as it does unless told otherwise, calls itself a Macintosh and is `desktop`.
#[udf]
pub fn device_class(user_agent: Option<&str>) -> String {
    class(user_agent.unwrap_or_default()).to_string()
}

fn class(agent: &str) -> &'static str {
    let android = agent.contains("Android");
    if OTHER.is_match(agent) {
        "other"
    } else if TV.is_match(agent) {
        "tv"
    } else if TABLET.is_match(agent) {
        "tablet"
    } else if PHONE.is_match(agent) {
        "mobile"
    } else if android && !agent.contains("CrOS") && !agent.contains("Chromebook") {
        "tablet"
    } else if DESKTOP.is_match(agent) {
        "desktop"
    } else {
        "other"
    }
}
