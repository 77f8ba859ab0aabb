//! How crates judge sets of real user agents: `cargo run --release -- FOLDER`, where sets.py has been.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

type Judge<'a, T> = (&'static str, Box<dyn Fn(&str) -> T + 'a>);

/// Lines of `class TAB agent`.
fn read(folder: &Path, set: &str) -> Result<Vec<(String, String)>, Box<dyn Error>> {
    let text = fs::read_to_string(folder.join("sets").join(format!("{set}.tsv")))?;
    Ok(text.lines().filter_map(|line| line.split_once('\t')).map(|(k, a)| (k.to_string(), a.to_string())).collect())
}

/// Nanoseconds a call when warm: the best of some rounds, since other work on the machine only ever adds.
fn ns(agents: &[(String, String)], mut call: impl FnMut(&str)) -> u128 {
    let rounds = (0..7).map(|_| {
        let start = Instant::now();
        agents.iter().for_each(|(_, agent)| call(agent));
        start.elapsed()
    });
    rounds.min().unwrap_or(Duration::ZERO).as_nanos() / agents.len().max(1) as u128
}

fn woothee_category(agent: &str) -> String {
    woothee::parser::Parser::new().parse(agent).map_or(String::new(), |found| found.category.to_string())
}

fn woothee_device(agent: &str) -> String {
    let found = woothee::parser::Parser::new().parse(agent);
    let device = found.map_or("other", |found| match (found.category, found.os) {
        (_, "iPad") => "tablet",
        ("pc", _) => "desktop",
        ("smartphone" | "mobilephone", _) => "mobile",
        ("appliance", "DigitalTV" | "AppleTV") => "tv",
        _ => "other",
    });
    device.to_string()
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: user-agent-comparison FOLDER")?;
    let folder = Path::new(&folder);
    let (matomo, list) = (read(folder, "bots-matomo")?, read(folder, "bots-list")?);
    let (now, old) = (read(folder, "people-now")?, read(folder, "people-2022")?);
    let people = read(folder, "people-matomo")?;

    let uap = fs::read_to_string(folder.join("sets/uap-core.json"))?;
    let uap: ua_parser::Regexes = serde_json::from_str(&uap)?;
    let uap = ua_parser::device::Builder::new().push_all(uap.device_parsers)?.build()?;
    // Its answer borrows the agent as long as the parser, so one parser cannot outlive a batch of agents.
    let uap: &'static ua_parser::device::Extractor<'static> = Box::leak(Box::new(uap));
    let spider = |agent: &str| {
        let agent: &'static str = Box::leak(agent.to_string().into_boxed_str());
        uap.extract(agent).is_some_and(|found| found.device == "Spider")
    };
    let isbot = isbot::Bots::default();

    println!("missed bots; people wrongly called bots; ns a call for people and for bots");
    let bots: Vec<Judge<bool>> = vec![
        ("udfs::bot_reason", Box::new(|agent| udfs::bot_reason(Some(agent)).is_some())),
        ("woothee", Box::new(|agent| woothee_category(agent) == "crawler")),
        ("isbot", Box::new(|agent| isbot.is_bot(agent))),
        ("ua-parser", Box::new(spider)),
        ("iscrawl is_crawler", Box::new(iscrawl::is_crawler)),
        ("iscrawl crawler_info", Box::new(|agent| iscrawl::crawler_info(agent).is_some())),
        ("isbot or woothee", Box::new(|agent| isbot.is_bot(agent) || woothee_category(agent) == "crawler")),
        ("isbot or crawler_info", Box::new(|agent| isbot.is_bot(agent) || iscrawl::crawler_info(agent).is_some())),
    ];
    for (name, judge) in &bots {
        let count = |agents: &[(String, String)], bot: bool| agents.iter().filter(|(_, a)| judge(a) == bot).count();
        println!(
            "{name}: matomo {}/{} list {}/{}; now {}/{} matomo {}/{} 2022 {}/{}; {} {}",
            count(&matomo, false),
            matomo.len(),
            count(&list, false),
            list.len(),
            count(&now, true),
            now.len(),
            count(&people, true),
            people.len(),
            count(&old, true),
            old.len(),
            ns(&now, |agent| {
                std::hint::black_box(judge(agent));
            }),
            ns(&matomo, |agent| {
                std::hint::black_box(judge(agent));
            }),
        );
        if let Some(missed) = std::env::args().nth(2).filter(|shown| shown == name) {
            println!("people whom {missed} calls bots:");
            people.iter().chain(&now).filter(|(_, agent)| judge(agent)).for_each(|(_, agent)| println!("  {agent}"));
            println!("bots that {missed} misses:");
            matomo.iter().chain(&list).filter(|(_, agent)| !judge(agent)).for_each(|(_, agent)| println!("  {agent}"));
        }
    }

    println!("wrong devices; ns a call for people");
    let devices: Vec<Judge<String>> = vec![
        ("udfs::device_class", Box::new(|agent| udfs::device_class(Some(agent)))),
        ("woothee", Box::new(woothee_device)),
    ];
    for (name, judge) in &devices {
        let wrong = |agents: &[(String, String)]| {
            let known = agents.iter().filter(|(kind, _)| kind != "?");
            format!("{}/{}", known.clone().filter(|(kind, agent)| judge(agent) != *kind).count(), known.count())
        };
        let speed = ns(&now, |agent| {
            std::hint::black_box(judge(agent));
        });
        println!("{name}: now {} matomo {}; {speed}", wrong(&now), wrong(&people));
    }

    // `is_crawler` keeps answers by the address and length of the text: another text in the same place gets them too.
    let browser =
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0.0.0 pad Safari/537.36";
    let mut buffer = browser.to_string();
    let before = iscrawl::is_crawler(&buffer);
    buffer.clear();
    buffer.push_str(&browser.replace("pad", "bot"));
    println!("is_crawler of a bot after a browser in one buffer: {before}, {}", iscrawl::is_crawler(&buffer));
    println!("is_crawler of the bot alone: {}", iscrawl::is_crawler(&buffer.clone()));
    Ok(())
}
