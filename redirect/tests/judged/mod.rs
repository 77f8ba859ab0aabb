//! What the redirect alone can know: signatures, blocked networks and headers, countries, an ad that is over.

use crate::app::mmdb::sample;
use crate::app::{NOON, TestApp, TestLog, eventually, no_rules};
use click::{InvalidReason, Millis};
use redirect::block::Blocks;
use redirect::country::Countries;
use redirect::reload::Reloaded;
use redirect::signature::{Keys, Signed, sign};
use redirect::{Settings, With};
use std::time::Duration;

const KEYS: [&str; 2] = ["an old key, of at least 32 bytes ..", "a new key, of at least 32 bytes ..."];

fn keys() -> Keys {
    Keys::new([("old", KEYS[0].as_bytes()), ("new", KEYS[1].as_bytes())], Duration::from_secs(3_600)).unwrap()
}

fn signed(impression: &str, ad: &str, campaign: &str, key_id: &str, key: &str, in_seconds: i64) -> String {
    let noon: Millis = NOON.parse().unwrap();
    let expires = noon.get() / 1_000 + in_seconds;
    let of = Signed { impression_id: impression, ad_id: ad, campaign_id: campaign, publisher_id: "", expires };
    let signature = sign(key.as_bytes(), &of).unwrap();
    format!("/api/v1/click/{impression}?ad_id={ad}&campaign_id={campaign}&exp={expires}&kid={key_id}&sig={signature}")
}

fn proxied() -> Settings {
    Settings { trusted_proxies: vec!["127.0.0.1/32".parse().unwrap()], ..Settings::default() }
}

#[tokio::test]
async fn a_click_is_billed_by_its_signature_and_redirected_all_the_same() {
    let app = TestApp::with_all(TestLog::new(), Settings::default(), With { keys: keys(), ..no_rules() }).await;
    let good = signed("i", "ad_9", "cmp_7", "old", KEYS[0], 60);
    for (target, expected) in [
        (good.clone(), None),
        (signed("i", "ad_9", "cmp_7", "new", KEYS[1], 3_600), None),
        (format!("{good}&gclid=1&x=%zz"), None),
        (format!("{}&x", good.replace("i?", "j?")), Some(InvalidReason::BadSignature)),
        (good.replace("kid=old", "kid=new"), Some(InvalidReason::BadSignature)),
        (good.replace("kid=old", "kid=none"), Some(InvalidReason::BadSignature)),
        (good.replace("&kid=old", ""), Some(InvalidReason::BadSignature)),
        (good.replace("sig=", "sig=0"), Some(InvalidReason::BadSignature)),
        (good.replace("exp=", "exp=0"), Some(InvalidReason::BadSignature)),
        (format!("{good}&publisher_id=pub_4"), Some(InvalidReason::BadSignature)),
        (format!("{good}&sig=1"), Some(InvalidReason::BadSignature)),
        (format!("{}&sig=%zz", good.split("&sig").next().unwrap()), Some(InvalidReason::BadSignature)),
        ("/api/v1/click/i?ad_id=ad_9&campaign_id=cmp_7".into(), Some(InvalidReason::Unsigned)),
        (signed("i", "ad_9", "cmp_7", "new", KEYS[1], -1), Some(InvalidReason::Expired)),
        (signed("i", "ad_9", "cmp_7", "new", KEYS[1], 3_602), Some(InvalidReason::BadSignature)),
        (signed("i", "ad_9", "cmp_8", "new", KEYS[1], 60), Some(InvalidReason::Mismatch)),
        (signed("i", "ad_paused", "cmp_7", "new", KEYS[1], 60), Some(InvalidReason::Inactive)),
    ] {
        let answer = app.get(&target).await;
        assert_eq!(answer.status, 302, "{target}");
        assert!(answer.header("location").unwrap().starts_with("https://shop.example/"), "{target}");
        assert_eq!(app.log.clicks().last().unwrap().invalid_reason, expected, "{target}");
    }
    let counted: Vec<_> = app.service.invalid().filter(|(_, count)| *count > 0).collect();
    let reason = |reason, count| (reason, count);
    assert_eq!(
        counted,
        [
            reason(InvalidReason::Unsigned, 1),
            reason(InvalidReason::BadSignature, 10),
            reason(InvalidReason::Expired, 1),
            reason(InvalidReason::Inactive, 1),
            reason(InvalidReason::Mismatch, 1)
        ]
    );
    assert_eq!(app.service.details()["signatures"], "needed; keys: new, old");
    assert_eq!(app.get("/readyz").await.body, r#"{"ready":true}"#, "the public hears no more");
}

#[tokio::test]
async fn a_blocked_client_notices_nothing_and_is_not_billed() {
    let rules = "net 203.0.113.0/24\nheader X-Scanner\n";
    let blocks = Reloaded::fixed("block rules", Blocks::parse("rules", rules).unwrap());
    let app = TestApp::with_all(TestLog::new(), proxied(), With { blocks, ..no_rules() }).await;
    for (lines, expected) in [
        ("X-Forwarded-For: 203.0.113.9\r\n", Some(InvalidReason::Blocked)),
        ("X-Forwarded-For: 203.0.113.9, 198.51.100.1\r\n", None),
        ("X-Scanner: 1\r\n", Some(InvalidReason::Blocked)),
        ("X-Scanner: 1\r\nPurpose: prefetch\r\n", Some(InvalidReason::Prefetch)),
        ("", None),
    ] {
        let answer = app.send("GET", "/api/v1/click/i?ad_id=ad_9", lines).await;
        assert_eq!(answer.status, if lines.contains("prefetch") { 503 } else { 302 }, "{lines}");
        assert_eq!(app.log.clicks().last().unwrap().invalid_reason, expected, "{lines}");
    }
}

#[tokio::test]
async fn a_rule_with_a_number_sign_blocks_whom_it_names_and_nobody_else() {
    assert!(Blocks::parse("rules", "header User-Agent #bot").is_err(), "neither text nor comment");
    let blocks = Reloaded::fixed("block rules", Blocks::parse("rules", "# all\nheader User-Agent C#bot\n").unwrap());
    let app = TestApp::with_all(TestLog::new(), Settings::default(), With { blocks, ..no_rules() }).await;
    for (lines, expected) in
        [("User-Agent: Chrome\r\n", None), ("User-Agent: a c#Bot 1\r\n", Some(InvalidReason::Blocked)), ("", None)]
    {
        assert_eq!(app.send("GET", "/api/v1/click/i?ad_id=ad_9", lines).await.status, 302, "{lines}");
        assert_eq!(app.log.clicks().last().unwrap().invalid_reason, expected, "{lines}");
    }
}

#[tokio::test]
async fn an_address_is_in_neither_the_log_nor_an_answer() {
    let app = TestApp::with_all(TestLog::new(), proxied(), no_rules()).await;
    let answer = app.send("GET", "/api/v1/click/i?ad_id=ad_9", "X-Forwarded-For: 203.0.113.77\r\n").await;
    let (_, record) = app.log.click_texts().pop().unwrap();
    for text in [record, format!("{answer:?}")] {
        assert!(!text.contains("203.0.113") && !text.contains("127.0.0.1"), "{text}");
    }
}

const LINES: &str = "ad_id,campaign_id,publisher_id,advertiser_id,landing_page,state,parameters,fallback_page
live,cmp_7,pub_4,adv_1,https://shop.example/live?own=1#top,active,gclid utm_* own,https://shop.example/later
paused,cmp_7,pub_4,adv_1,https://shop.example/paused,paused,gclid,https://shop.example/instead?of={ad_id}
over,cmp_7,pub_4,adv_1,https://shop.example/over,ended,,https://shop.example/instead
alone,cmp_7,pub_4,adv_1,https://shop.example/alone,paused,,
";

#[tokio::test]
async fn pages_have_a_fallback_and_the_parameters_that_the_ad_lets_through() {
    let catalog = Reloaded::fixed("catalog", redirect::Catalog::parse("test", LINES).unwrap());
    let app = TestApp::with_catalog(TestLog::new(), catalog).await;
    let inactive = Some(InvalidReason::Inactive);
    for (query, page, reason) in [
        ("ad_id=live", "https://shop.example/live?own=1#top", None),
        (
            "ad_id=live&gclid=a%20b&x=1&utm_source=n",
            "https://shop.example/live?own=1&gclid=a%20b&utm_source=n#top",
            None,
        ),
        ("ad_id=live&own=2&GCLID=1", "https://shop.example/live?own=1#top", None),
        ("ad_id=live&gclid=1;next=//evil", "https://shop.example/live?own=1&gclid=1%3Bnext=//evil#top", None),
        ("ad_id=paused", "https://shop.example/instead?of=paused", inactive),
        ("ad_id=paused&gclid=1&utm_a=2", "https://shop.example/instead?of=paused&gclid=1", inactive),
        ("ad_id=over&gclid=1", "https://shop.example/instead", inactive),
        ("ad_id=alone", "https://shop.example/alone", inactive),
    ] {
        let answer = app.get(&format!("/api/v1/click/i?{query}")).await;
        assert_eq!((answer.status, answer.header("location")), (302, Some(page)), "{query}");
        assert_eq!(app.log.clicks().last().unwrap().invalid_reason, reason, "{query}");
    }
}

/// Puts a file in place at once, as an operator should.
fn replace(path: &std::path::Path, bytes: &[u8]) {
    let new = path.with_extension("new");
    std::fs::write(&new, bytes).unwrap();
    std::fs::rename(new, path).unwrap();
}

/// Clicks until something is so, for as long as a busy machine may need.
async fn clicked_until(app: &TestApp, lines: &str, is_so: impl Fn(&click::Click) -> bool) {
    for _ in 0..600 {
        assert_eq!(app.send("GET", "/api/v1/click/i?ad_id=ad_9", lines).await.status, 302);
        if is_so(app.log.clicks().last().unwrap()) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never so, after {lines:?}");
}

#[tokio::test]
async fn a_file_of_countries_wins_over_the_header_and_is_loaded_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("countries.mmdb");
    replace(&path, &sample("DE"));
    let countries = Countries::follow(Some(&path)).unwrap();
    let settings = Settings { country_header: Some("x-country".parse().unwrap()), ..proxied() };
    let app = TestApp::with_all(TestLog::new(), settings, With { countries, ..no_rules() }).await;
    let known = "X-Forwarded-For: 192.0.2.9\r\nX-Country: JP\r\n";
    for (lines, expected) in [
        (known, "DE"),
        ("X-Forwarded-For: 192.0.2.9\r\n", "DE"),
        ("X-Forwarded-For: 2001:db8::7\r\nX-Country: JP\r\n", "FR"),
        ("X-Forwarded-For: 203.0.113.9\r\nX-Country: JP\r\n", "JP"),
        ("X-Forwarded-For: 203.0.113.9\r\n", "ZZ"),
    ] {
        app.send("GET", "/api/v1/click/i?ad_id=ad_9", lines).await;
        assert_eq!(app.log.clicks().last().unwrap().country.as_str(), expected, "{lines}");
    }
    replace(&path, &sample("AT"));
    clicked_until(&app, known, |click| click.country.as_str() == "AT").await;
    // Half a file is refused, and the old one goes on.
    replace(&path, &sample("CH")[..100]);
    eventually("it is refused", || app.service.reload_refusals() == 1).await;
    clicked_until(&app, known, |click| click.country.as_str() == "AT").await;
}

#[tokio::test]
async fn block_rules_are_loaded_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("block.rules");
    replace(&path, b"header X-Scanner\n");
    let blocks = Blocks::follow(Some(&path)).unwrap();
    let app = TestApp::with_all(TestLog::new(), proxied(), With { blocks, ..no_rules() }).await;
    let [one, other] = ["X-Scanner: 1\r\n", "X-Forwarded-For: 203.0.113.9\r\n"];
    let blocked = |click: &click::Click| click.invalid_reason == Some(InvalidReason::Blocked);
    clicked_until(&app, one, blocked).await;
    clicked_until(&app, other, |click| !blocked(click)).await;
    replace(&path, b"net 203.0.113.0/24\n");
    clicked_until(&app, other, blocked).await;
    clicked_until(&app, one, |click| !blocked(click)).await;
    replace(&path, b"net 203.0.113.0/24\nheader User-Agent # all\n");
    eventually("it is refused", || app.service.reload_refusals() == 1).await;
    clicked_until(&app, other, blocked).await;
    clicked_until(&app, one, |click| !blocked(click)).await;
}

#[tokio::test]
async fn a_proxy_that_writes_forwarded_speaks_for_a_client_in_no_other_header() {
    let settings = Settings { forwarded_header: "forwarded".parse().unwrap(), ..proxied() };
    let app = TestApp::with_all(TestLog::new(), settings, no_rules()).await;
    // The hash is that of 203.0.113.7, computed with openssl.
    let expected = "a4f688aded296ff1784e73c641a99404";
    for (lines, is_it) in [
        ("Forwarded: for=203.0.113.7;proto=https\r\n", true),
        ("Forwarded: for=9.9.9.9, For=\"203.0.113.7:4711\"\r\nX-Forwarded-For: 9.9.9.9\r\n", true),
        ("X-Forwarded-For: 203.0.113.7\r\n", false),
        ("Forwarded: for=_hidden\r\n", false),
    ] {
        assert_eq!(app.send("GET", "/api/v1/click/i?ad_id=ad_9", lines).await.status, 302);
        assert_eq!(&*app.log.clicks().last().unwrap().ip_hash == expected, is_it, "{lines}");
    }
}

/// A version is taken when two looks found it.
async fn look_twice(reloaded: std::sync::Arc<Reloaded<redirect::Catalog>>) {
    tokio::task::spawn_blocking(move || (0..2).for_each(|_| reloaded.look())).await.unwrap();
}

#[tokio::test]
async fn a_catalog_that_changes_under_load_drops_no_request() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ads.csv");
    let catalog = |page: usize| {
        format!(
            "ad_id,campaign_id,publisher_id,advertiser_id,landing_page,state\nad_9,cmp_7,pub_4,adv_1,https://shop.example/{page},active\n"
        )
    };
    let replace = |text: String| {
        std::fs::write(dir.path().join("new"), text).unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
    };
    replace(catalog(0));
    let reloaded = Reloaded::open(&path, "catalog", |path| redirect::Catalog::load(path)).unwrap();
    let app = TestApp::with_catalog(TestLog::new(), reloaded.clone()).await;
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let asking = async {
        let mut pages = std::collections::BTreeSet::new();
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            let answer = app.get("/api/v1/click/i?ad_id=ad_9").await;
            assert_eq!(answer.status, 302);
            let page = answer.header("location").unwrap().strip_prefix("https://shop.example/").unwrap().to_owned();
            pages.insert(page.parse::<usize>().unwrap());
        }
        pages
    };
    let replacing = async {
        for version in 1..=20 {
            // Every other one is wrong.
            replace(if version % 2 == 0 { catalog(version) } else { "ad_id\n".into() });
            let reloaded = reloaded.clone();
            look_twice(reloaded).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let (pages, ()) = tokio::join!(asking, replacing);
    assert!(pages.len() > 1 && pages.iter().all(|page| page % 2 == 0), "{pages:?}");
    assert_eq!(reloaded.refusals(), 10);
    assert_eq!(app.get("/readyz").await.status, 200);
    replace("ad_id\n".into());
    look_twice(reloaded).await;
    let refused = app.service.details()["refusedFiles"]["catalog"].to_string();
    assert!(refused.contains("ads.csv line 1"), "{refused}");
    let ready = app.get("/readyz").await;
    assert_eq!((ready.status, &*ready.body), (200, r#"{"ready":true}"#), "the old one goes on");
}
