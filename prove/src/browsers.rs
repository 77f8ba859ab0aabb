//! The world outside: browsers, and what they were told.

use crate::generator::{CHANGED, How, PEOPLE, Request, Through};
use crate::judge::Judge;
use click::{ClickId, Millis, Minute};
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// How far the clock of the second redirect is ahead, in milliseconds.
pub const AHEAD_MS: i64 = 7_000;

/// The redirects of a site: the plain one, the one whose clock is ahead, and the slow one.
pub type Redirects = [SocketAddr; 3];

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

    /// Sends a request at `now` by the plain redirect's clock and remembers the answer. The future ends when the answer
    /// is there; meanwhile the clock may go on by `step_ms`.
    ///
    /// # Errors
    /// The future's: an answer that no redirect may give.
    pub fn send(
        &self,
        redirects: &Redirects,
        now: Millis,
        step_ms: i64,
        request: Request,
    ) -> impl Future<Output = Result<(), String>> + Send + 'static {
        let dimensions = self.dimensions(&request);
        let eligible = self.is_eligible(&request);
        let address = match request.through {
            Through::Plain => redirects[0],
            Through::Ahead => redirects[1],
            Through::Slow(_) => redirects[2],
        };
        let path = self.path(&request, now);
        let (client, judge) = (self.client.clone(), self.judge.clone());
        let ahead = if request.through == Through::Ahead { AHEAD_MS } else { 0 };
        async move {
            // A clock ahead of the log's is cut back to the log's; while this waits both may go on.
            // Nobody waits for who goes away or is slow: the clock goes on before such a click comes in.
            let steps =
                if request.how == How::GoneAway || matches!(request.through, Through::Slow(_)) { 90 } else { 2 };
            let mut minutes: Vec<Minute> = (0..=steps).map(|step| now.plus(step * step_ms).minute()).collect();
            minutes.dedup();
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
                    match eligible {
                        true if matches!(request.through, Through::Slow(_)) => {
                            judge.came(&request.impression, &minutes, &dimensions);
                            judge.spooled(&request.impression, id, &dimensions, request.person == Some(CHANGED));
                        }
                        true => {
                            judge.came(&request.impression, &minutes, &dimensions);
                            judge.answered_at(&request.impression, id, ahead, &dimensions);
                            if request.person == Some(CHANGED) {
                                judge.doubt(&request.impression);
                            }
                        }
                        false => judge.ineligible += 1,
                    }
                }
                // The system said that it could not, or went away: the click may be in the log or not.
                Ok(answer) if answer.status().as_u16() != 503 => {
                    return Err(format!("{path} was answered {}, and not {expected}", answer.status()));
                }
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
