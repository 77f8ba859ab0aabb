//! The world outside: browsers, and what they were told.

use crate::generator::{CHANGED, How, PEOPLE, Request, Through};
use crate::judge::{Judge, Times, minutes};
use click::{ClickId, Millis, Minute};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// How far the clock of the second redirect is ahead, in milliseconds, where it is not told to differ otherwise.
pub const AHEAD_MS: i64 = 7_000;

/// The redirects of a site: the plain one, the one whose clock is ahead, and the slow one.
pub type Redirects = [SocketAddr; 3];

/// What is known of clocks and of the site when a request is sent.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// By the plain redirect's clock.
    pub now: Millis,
    /// The latest that any clock has been: the log's time does not go back with its clock.
    pub latest: Millis,
    /// How far the clock may go on until a request is answered that somebody waits for.
    pub passes_ms: i64,
    /// How far it may do so until one comes in that nobody waits for.
    pub unwatched_ms: i64,
    /// How far the log's clock may have gone back when a click comes from a spool.
    pub back_ms: i64,
    /// How far the clock of the second redirect is from the plain one's.
    pub skew_ms: i64,
    /// Whether nothing keeps the site from taking every click.
    pub takes_all: bool,
}

impl Moment {
    /// The minutes of which one is the click's.
    fn minutes(&self, skew_ms: i64, passes_ms: i64) -> Vec<Minute> {
        let (first, last) = (self.now.plus(skew_ms.min(0)), self.now.plus(passes_ms));
        // Ahead, the log's time is the click's.
        let recorded = if skew_ms > 0 { self.latest.min(last.plus(skew_ms)) } else { last };
        minutes(first, last.max(recorded))
    }
}

/// Browsers that click on the ads of a catalog.
pub struct Browsers {
    client: reqwest::Client,
    judge: Arc<Mutex<Judge>>,
    /// Ad, campaign, publisher, and whether its clicks are billed.
    ads: Vec<([String; 3], bool)>,
    /// Whether the rules have changed.
    pub changed: bool,
    /// Whether the redirects have keys, and URLs are signed.
    pub signed: bool,
}

impl Browsers {
    /// # Errors
    /// If there is no HTTP client to be had.
    pub fn new(catalog: &redirect::Catalog, signed: bool) -> Result<Browsers, reqwest::Error> {
        let mut ads: Vec<_> = catalog
            .ads()
            .map(|ad| {
                let ids = [ad.ad_id.to_string(), ad.campaign_id.to_string(), ad.publisher_id.to_string()];
                (ids, ad.state == redirect::AdState::Active)
            })
            .collect();
        ads.sort();
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build()?;
        Ok(Browsers { client, judge: Arc::default(), ads, changed: false, signed })
    }

    pub fn ads(&self) -> usize {
        self.ads.len()
    }

    pub fn client(&self) -> &reqwest::Client {
        &self.client
    }

    pub fn judge(&self) -> MutexGuard<'_, Judge> {
        lock(&self.judge)
    }

    fn dimensions(&self, request: &Request) -> [String; 5] {
        let [ad, campaign, publisher] = self.ads[request.ad].0.clone();
        let device = request.person.map_or("", |person| PEOPLE[person].1);
        [ad, campaign, publisher, request.country.to_string(), device.to_string()]
    }

    /// By the definition: a person's click on an active ad, not a prefetch, with the ad's own campaign, and well signed where
    /// redirects have keys.
    fn is_eligible(&self, request: &Request) -> bool {
        let (_, active) = self.ads[request.ad];
        let is_person = request.person.is_some_and(|person| !(self.changed && person == CHANGED));
        is_person
            && active
            && (!self.signed || request.sign.is_good())
            && matches!(request.how, How::Get | How::Post | How::GoneAway)
    }

    /// Sends a request and remembers the answer. The future ends when the answer is there.
    ///
    /// # Errors
    /// The future's: an answer that no redirect may give, or none where nothing keeps it from one.
    pub fn send(
        &self,
        redirects: &Redirects,
        moment: Moment,
        request: Request,
    ) -> impl Future<Output = Result<(), String>> + Send + 'static {
        let dimensions = self.dimensions(&request);
        let eligible = self.is_eligible(&request);
        let address = match request.through {
            Through::Plain => redirects[0],
            Through::Ahead => redirects[1],
            Through::Slow(_) => redirects[2],
        };
        let skew_ms = if request.through == Through::Ahead { moment.skew_ms } else { 0 };
        // Who signs has the clock of the redirect that he signs for.
        let path = self.path(&request, moment.now.plus(skew_ms));
        let (client, judge) = (self.client.clone(), self.judge.clone());
        let doubtful = request.person == Some(CHANGED);
        async move {
            let is_slow = matches!(request.through, Through::Slow(_));
            // Nobody waits for who goes away or is slow: the clock goes on before such a click comes in.
            let is_watched = request.how != How::GoneAway && !is_slow;
            let minutes = moment.minutes(skew_ms, if is_watched { moment.passes_ms } else { moment.unwatched_ms });
            if eligible {
                lock(&judge).sent(&request.impression, &minutes, &dimensions);
            }
            if request.how == How::GoneAway {
                let (agent, country) = (request.user_agent(), request.country);
                let text =
                    format!("GET {path} HTTP/1.1\r\nHost: x\r\nUser-Agent: {agent}\r\nX-Country: {country}\r\n\r\n");
                // Whether it comes through is nobody's business.
                if let Ok(mut stream) = TcpStream::connect(address).await {
                    let _ = stream.write_all(text.as_bytes()).await;
                }
                return Ok(());
            }
            let url = format!("http://{address}{path}");
            let call = match request.how {
                How::Post => client.post(url),
                How::Head => client.head(url),
                How::Prefetch => client.get(url).header("Sec-Purpose", "prefetch"),
                _ => client.get(url),
            };
            let answer =
                call.header("User-Agent", request.user_agent()).header("X-Country", request.country).send().await;
            let expected = match request.how {
                How::Post => 204,
                How::Prefetch => 503,
                _ => 302,
            };
            match answer {
                Ok(answer) if answer.status().as_u16() == expected => {
                    let id =
                        answer.headers().get("x-click-id").and_then(|id| id.to_str().ok()?.parse::<ClickId>().ok());
                    let Some(id) = id else { return Err(format!("the answer to {path} does not name its click")) };
                    let mut judge = lock(&judge);
                    // Nobody counts a HEAD; and a prefetch that is refused is answered as one that is taken, but for this.
                    if request.how != How::Head && !answer.headers().contains_key("retry-after") {
                        judge.has_record(id);
                    }
                    if !eligible {
                        judge.ineligible += 1;
                        return Ok(());
                    }
                    judge.came(&request.impression, &minutes, &dimensions);
                    if is_slow {
                        judge.spooled(&request.impression, id, moment.back_ms, &dimensions, doubtful);
                    } else {
                        let latest = moment.latest.max(moment.now.plus(moment.passes_ms));
                        let times = Times::of(id.at(), skew_ms, latest);
                        judge.answered_at(&request.impression, id, times, &dimensions, doubtful);
                    }
                }
                Ok(answer) if answer.status().as_u16() != 503 || moment.takes_all => {
                    return Err(format!("{path} was answered {}, and not {expected}", answer.status()));
                }
                // A life ends before what is slow is answered.
                Err(error) if moment.takes_all && is_watched => {
                    return Err(format!("{path} has no answer: {error}"));
                }
                // The system said that it could not, or went away: the click may be in the log or not.
                Ok(_) | Err(_) => {}
            }
            Ok(())
        }
    }

    fn path(&self, request: &Request, now: Millis) -> String {
        let ([ad, campaign, publisher], _) = &self.ads[request.ad];
        let campaign = if request.how == How::WrongCampaign { "cmp_other" } else { campaign };
        let publisher = match request.how {
            How::WrongPublisher => "pub_other",
            _ if request.names_publisher => publisher,
            _ => "",
        };
        let impression = request.impression.as_str();
        let mut path = format!("/api/v1/click/{impression}?ad_id={ad}&campaign_id={campaign}");
        if !publisher.is_empty() {
            path.push_str(&format!("&publisher_id={publisher}"));
        }
        if self.signed {
            path.push_str(&request.sign.query([impression, ad, campaign, publisher], now));
        }
        path
    }

    /// Impressions that must be billed, and clicks that must not.
    pub fn counts(&self) -> (usize, u64) {
        let judge = self.judge();
        (judge.must(), judge.ineligible)
    }
}

fn lock(judge: &Mutex<Judge>) -> MutexGuard<'_, Judge> {
    judge.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sign::Sign;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    const CATALOG: &str = "ad_id,campaign_id,publisher_id,advertiser_id,landing_page,state\n\
                           ad_1,cmp_1,pub_1,adv_1,http://127.0.0.1/,active\n";

    /// Whether an answer is taken for one that a site may give.
    async fn is_taken(answer: &'static str, takes_all: bool) -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let site = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a browser");
            let read = stream.read(&mut [0; 4096]).await.expect("a request");
            assert!(read > 0, "the browser hung up");
            stream.write_all(answer.as_bytes()).await.expect("an answer");
        });
        let catalog = redirect::Catalog::parse("catalog.csv", CATALOG).expect("a catalog");
        let browsers = Browsers::new(&catalog, false).expect("a client");
        let now = Millis::new(1_776_686_400_000);
        let moment =
            Moment { now, latest: now, passes_ms: 0, unwatched_ms: 0, back_ms: 0, skew_ms: AHEAD_MS, takes_all };
        let request = Request {
            at_ms: 0,
            impression: "imp".into(),
            ad: 0,
            person: Some(0),
            country: "DE",
            through: Through::Plain,
            how: How::Get,
            sign: Sign::Good,
            names_publisher: false,
        };
        let taken = browsers.send(&[address; 3], moment, request).await;
        site.await.expect("a site");
        taken.is_ok()
    }

    #[tokio::test]
    async fn a_refusal_needs_a_fault() {
        const REFUSED: &str = "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n";
        const WRONG: &str = "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n";
        assert!(is_taken(REFUSED, false).await && !is_taken(REFUSED, true).await);
        assert!(is_taken("", false).await && !is_taken("", true).await, "no answer at all");
        assert!(!is_taken(WRONG, false).await && !is_taken(WRONG, true).await);
    }
}
