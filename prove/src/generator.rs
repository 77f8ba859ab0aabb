//! What browsers, bots and retries do, in virtual time; seeded.

use crate::sign::Sign;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// User agents, and their device class.
pub const PEOPLE: [(&str, &str); 4] = [
    (
        "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.5 Mobile/15E148 Safari/604.1",
        "mobile",
    ),
    (
        "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/138.0.0.0 Safari/537.36",
        "desktop",
    ),
    (
        "Mozilla/5.0 (Linux; Android 15; Pixel 9) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/138.0.0.0 Mobile Safari/537.36",
        "mobile",
    ),
    ("Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "desktop"),
];
/// Before the milliseconds that a click is held, at the end of its user agent.
pub const HELD: &str = " Held/";
const BOT: &str = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)";
/// The person whom changed rules take for a bot: by what a pipeline can see of it.
pub const CHANGED: usize = 2;
pub const CHANGED_AGENT: &str = "Pixel 9";
const COUNTRIES: [&str; 4] = ["DE", "US", "IN", "BR"];

/// Which redirect a request goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Through {
    /// Its clock is right.
    Plain,
    /// Its clock is ahead.
    Ahead,
    /// Its way to the log takes this long, in virtual milliseconds.
    Slow(i64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    Get,
    Post,
    Head,
    Prefetch,
    /// The browser goes away before the answer.
    GoneAway,
    /// The URL's campaign is not the ad's.
    WrongCampaign,
    /// The URL's publisher is not the ad's.
    WrongPublisher,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Request {
    pub at_ms: i64,
    pub impression: String,
    pub ad: usize,
    /// Index into [`PEOPLE`]; none is a bot.
    pub person: Option<usize>,
    pub country: &'static str,
    pub through: Through,
    pub how: How,
    /// Where redirects have keys.
    pub sign: Sign,
    /// Whether the URL names the ad's publisher.
    pub names_publisher: bool,
}

impl Request {
    /// As the browser names itself. What goes through the slow redirect says how long it is held ([`crate::slow_log`]).
    pub fn user_agent(&self) -> String {
        let name = self.person.map_or(BOT, |person| PEOPLE[person].0);
        match self.through {
            Through::Slow(ms) => format!("{name}{HELD}{ms}"),
            _ => name.to_string(),
        }
    }
}

/// About so many requests over so much virtual time, in the order of their time; if they are `signed`, not all of them well.
pub fn generate(seed: u64, requests: usize, over_ms: i64, ads: usize, lateness_ms: i64, signed: bool) -> Vec<Request> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut all: Vec<Request> = Vec::with_capacity(requests + 4);
    while all.len() < requests {
        let first = Request {
            at_ms: rng.random_range(0..over_ms),
            impression: format!("imp-{seed}-{}", all.len()),
            ad: rng.random_range(0..ads).min(rng.random_range(0..ads)),
            person: Some(rng.random_range(0..PEOPLE.len())),
            country: COUNTRIES[rng.random_range(0..COUNTRIES.len())],
            through: if rng.random_bool(0.2) { Through::Ahead } else { Through::Plain },
            how: How::Get,
            sign: if signed && rng.random_bool(0.1) { Sign::GoodOld } else { Sign::Good },
            names_publisher: signed && rng.random_bool(0.5),
        };
        let later = |ms: i64| Request { at_ms: (first.at_ms + ms).min(over_ms - 1), ..first.clone() };
        match rng.random_range(0..100) {
            // Late within the lateness, around it, and beyond it.
            0..3 => all.push(Request { through: Through::Slow(rng.random_range(0..lateness_ms)), ..first }),
            3 => all.push(Request { through: Through::Slow(lateness_ms + rng.random_range(-1..=1)), ..first }),
            4..6 => {
                all.push(Request { through: Through::Slow(lateness_ms + rng.random_range(1..lateness_ms)), ..first })
            }
            // A late one and one on time, on one impression.
            6 => {
                all.push(later(2_000));
                all.push(Request { through: Through::Slow(lateness_ms * 3 / 2), ..first });
            }
            // Double clicks: at once, in a later minute, on another redirect.
            7..11 => {
                all.push(later(rng.random_range(0..700)));
                all.push(first);
            }
            11..14 => {
                all.push(later(rng.random_range(20_000..90_000)));
                all.push(first);
            }
            14..16 => {
                all.push(Request { through: Through::Ahead, ..later(rng.random_range(0..3_000)) });
                all.push(Request { through: Through::Plain, ..first });
            }
            // A bot, a prefetch, a wrong campaign, and then a person on the same impression.
            16..19 => {
                all.push(later(rng.random_range(0..9_000)));
                all.push(Request { person: None, ..first });
            }
            19..22 => {
                all.push(later(rng.random_range(0..9_000)));
                all.push(Request { how: How::Prefetch, ..first });
            }
            22 => {
                all.push(later(rng.random_range(0..9_000)));
                all.push(Request { how: How::WrongCampaign, ..first });
            }
            // Nobody but a bot, a prefetch, a look.
            23..26 => all.push(Request { person: None, ..first }),
            26 => all.push(Request { how: How::Prefetch, ..first }),
            27 => all.push(Request { how: How::Head, ..first }),
            // The connection breaks; half of the browsers try again.
            28 => all.push(Request { how: How::GoneAway, ..first }),
            29 => {
                all.push(later(rng.random_range(0..5_000)));
                all.push(Request { how: How::GoneAway, ..first });
            }
            30..33 => all.push(Request { how: How::Post, ..first }),
            // Two people on one impression, of whom a change of the rules takes the first for a bot.
            33..36 => {
                all.push(Request { person: Some(0), ..later(rng.random_range(0..40_000)) });
                all.push(Request { person: Some(CHANGED), ..first });
            }
            // A bad signature, and the same click with a good one before or after it: the bad one claims nothing.
            36..46 if signed => {
                let bad = Sign::BAD[rng.random_range(0..Sign::BAD.len())];
                all.push(later(rng.random_range(0..9_000)));
                all.push(Request { sign: bad, ..if rng.random() { later(rng.random_range(0..9_000)) } else { first } });
            }
            46..52 if signed => {
                let bad = Sign::BAD[rng.random_range(0..Sign::BAD.len())];
                all.push(Request { sign: bad, ..first });
            }
            52..54 if signed => {
                all.push(later(rng.random_range(0..9_000)));
                all.push(Request { how: How::WrongPublisher, ..first });
            }
            _ => all.push(first),
        }
    }
    all.sort_by_key(|request| request.at_ms);
    all
}
