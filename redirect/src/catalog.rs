//! The ad catalog: the authority for campaign, publisher, landing page and state of an ad.

use crate::landing_page::LandingPage;
use crate::pass::Allowed;
use crate::reload::LoadError;
use click::{AdId, AdvertiserId, CampaignId, Invalid, PublisherId};
use serde::Deserialize;
use std::borrow::{Borrow, Cow};
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

/// The columns of a catalog file, in their order.
pub const COLUMNS: [&str; 6] = ["ad_id", "campaign_id", "publisher_id", "advertiser_id", "landing_page", "state"];

/// Columns that may follow, in this order: parameters of a request that are passed on to the page, and the page of an ad that
/// is paused or has ended.
pub const OPTIONAL_COLUMNS: [&str; 2] = ["parameters", "fallback_page"];

/// Ads of a file in JSON lines: an object a line, with the columns as names.
const JSON_LINES: &str = "jsonl";

/// One ad. A million of them have to fit: what many ads share stands in memory once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ad {
    pub ad_id: AdId,
    pub campaign_id: CampaignId,
    pub publisher_id: PublisherId,
    pub advertiser_id: AdvertiserId,
    pub landing_page: LandingPage,
    pub state: AdState,
    /// Parameters of a request that are passed on.
    pub parameters: Option<Arc<Allowed>>,
    /// The page while the ad is not active; its own if there is none.
    pub fallback_page: Option<Box<LandingPage>>,
}

impl Ad {
    /// The page that a browser is sent to now.
    pub fn page(&self) -> &LandingPage {
        match (&self.fallback_page, self.state) {
            (Some(fallback), AdState::Paused | AdState::Ended) => fallback,
            _ => &self.landing_page,
        }
    }
}

/// Whether clicks of an ad can be billed. All of them are sent to its page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AdState {
    Active,
    Paused,
    Ended,
}

impl FromStr for AdState {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text {
            "active" => Ok(AdState::Active),
            "paused" => Ok(AdState::Paused),
            "ended" => Ok(AdState::Ended),
            _ => Err(Invalid::new("state", text, "active, paused or ended")),
        }
    }
}

/// All ads, each once, at least one.
#[derive(Debug, Clone)]
pub struct Catalog(HashSet<ById>);

/// An ad that is found by its id. Boxed: up to half of a table's places are empty.
#[derive(Debug, Clone)]
struct ById(Box<Ad>);

impl Borrow<str> for ById {
    fn borrow(&self) -> &str {
        self.0.ad_id.as_str()
    }
}

impl Hash for ById {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.ad_id.as_str().hash(state);
    }
}

impl PartialEq for ById {
    fn eq(&self, other: &ById) -> bool {
        self.0.ad_id == other.0.ad_id
    }
}

impl Eq for ById {}

/// Why a catalog is refused as a whole: half a catalog would turn clicks away.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error("catalog {file}: {error}")]
    Io { file: String, error: std::io::Error },
    #[error(
        "catalog {file} line {line}: the columns are {given:?}, and must be {COLUMNS:?}, then any of {OPTIONAL_COLUMNS:?}"
    )]
    Columns { file: String, line: u64, given: Vec<String> },
    #[error("catalog {file} line {line}: {given} fields, and there must be {expected}, one for each column")]
    Fields { file: String, line: u64, given: u64, expected: u64 },
    #[error("catalog {file} line {line}: no ad in JSON: {error}")]
    Json { file: String, line: u64, error: serde_json::Error },
    #[error("catalog {file} line {line}: the text is not UTF-8")]
    NotUtf8 { file: String, line: u64 },
    #[error("catalog {file} line {line}, field {field}: {invalid}")]
    Field { file: String, line: u64, field: &'static str, invalid: Invalid },
    #[error("catalog {file} line {line}, field ad_id: {ad_id} was given before; an ad has one line")]
    Duplicate { file: String, line: u64, ad_id: AdId },
    #[error(
        "catalog {file}: it names no ad, so every click would be turned away; a line an ad must follow the columns"
    )]
    Empty { file: String },
}

impl LoadError for CatalogError {
    fn io(&self) -> Option<&std::io::Error> {
        match self {
            CatalogError::Io { error, .. } => Some(error),
            _ => None,
        }
    }
}

impl Catalog {
    /// Reads a CSV file with the columns [`COLUMNS`] and any of [`OPTIONAL_COLUMNS`], or, if its name ends with `.jsonl`, JSON
    /// lines with them as names.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, CatalogError> {
        let path = path.as_ref();
        let file = path.display().to_string();
        match std::fs::read(path) {
            Ok(bytes) if path.extension().is_some_and(|end| end == JSON_LINES) => Self::parse_json_lines(&file, &bytes),
            Ok(bytes) => Self::parse(&file, bytes),
            Err(error) => Err(CatalogError::Io { file, error }),
        }
    }

    /// Parses the text of a CSV catalog. `file` names it in errors.
    pub fn parse(file: &str, text: impl AsRef<[u8]>) -> Result<Self, CatalogError> {
        let text = text.as_ref();
        let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(text);
        let mut record = csv::StringRecord::new();
        reader.read_record(&mut record).map_err(|error| csv_error(file, text, error))?;
        let mut more = OPTIONAL_COLUMNS.iter();
        let known = record.len() >= COLUMNS.len()
            && record.iter().take(COLUMNS.len()).eq(COLUMNS)
            && record.iter().skip(COLUMNS.len()).all(|name| more.any(|optional| *optional == name));
        if !known {
            let given = record.iter().map(|name| name.chars().take(80).collect()).take(20).collect();
            return Err(CatalogError::Columns { file: file.to_owned(), line: 1, given });
        }
        let place = |name| record.iter().position(|column| column == name);
        let optional = OPTIONAL_COLUMNS.map(place);
        let mut ads = Ads::new(file);
        while reader.read_record(&mut record).map_err(|error| csv_error(file, text, error))? {
            let line = || line_of(text, record.position());
            let mut fields = [""; COLUMNS.len()];
            fields.iter_mut().zip(&record).for_each(|(field, given)| *field = given);
            let optional = optional.map(|at| at.and_then(|at| record.get(at)));
            ads.add(fields, optional, line)?;
        }
        ads.end()
    }

    /// Parses ads in JSON lines. `file` names them in errors.
    pub fn parse_json_lines(file: &str, text: &[u8]) -> Result<Self, CatalogError> {
        let mut ads = Ads::new(file);
        for (number, bytes) in text.split(|byte| *byte == b'\n').enumerate() {
            let line = number as u64 + 1;
            if bytes.trim_ascii().is_empty() {
                continue;
            }
            let row: Row =
                serde_json::from_slice(bytes).map_err(|error| CatalogError::Json { file: file.into(), line, error })?;
            let Row { ad_id, campaign_id, publisher_id, advertiser_id, landing_page, state, parameters, fallback_page } =
                &row;
            let fields = [ad_id, campaign_id, publisher_id, advertiser_id, landing_page, state].map(|field| &**field);
            let parameters = parameters.as_ref().map(|names| names.join(" "));
            ads.add(fields, [parameters.as_deref(), fallback_page.as_deref()], || line)?;
        }
        ads.end()
    }

    /// The ad of this id. Text that is no id names no ad.
    pub fn get(&self, ad_id: &str) -> Option<&Ad> {
        self.0.get(ad_id).map(|ad| &*ad.0)
    }

    /// All ads, in no order.
    pub fn ads(&self) -> impl Iterator<Item = &Ad> {
        self.0.iter().map(|ad| &*ad.0)
    }
}

/// An ad as JSON.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row<'a> {
    #[serde(borrow)]
    ad_id: Cow<'a, str>,
    #[serde(borrow)]
    campaign_id: Cow<'a, str>,
    #[serde(borrow)]
    publisher_id: Cow<'a, str>,
    #[serde(borrow)]
    advertiser_id: Cow<'a, str>,
    #[serde(borrow)]
    landing_page: Cow<'a, str>,
    #[serde(borrow)]
    state: Cow<'a, str>,
    #[serde(default)]
    parameters: Option<Vec<String>>,
    #[serde(borrow, default)]
    fallback_page: Option<Cow<'a, str>>,
}

/// Ads as they are read.
struct Ads<'f> {
    file: &'f str,
    ads: HashSet<ById>,
    /// What many ads have in common.
    campaigns: HashSet<CampaignId>,
    publishers: HashSet<PublisherId>,
    advertisers: HashSet<AdvertiserId>,
    parameters: HashMap<String, Arc<Allowed>>,
}

impl<'f> Ads<'f> {
    fn new(file: &'f str) -> Self {
        Ads {
            file,
            ads: HashSet::new(),
            campaigns: HashSet::new(),
            publishers: HashSet::new(),
            advertisers: HashSet::new(),
            parameters: HashMap::new(),
        }
    }

    /// Takes the fields of [`COLUMNS`], and of [`OPTIONAL_COLUMNS`] those that are there; empty ones are not.
    fn add(
        &mut self,
        fields: [&str; COLUMNS.len()],
        optional: [Option<&str>; OPTIONAL_COLUMNS.len()],
        line: impl Fn() -> u64,
    ) -> Result<(), CatalogError> {
        let file = self.file;
        let ad = self.parse(fields, optional.map(|text| text.filter(|text| !text.is_empty())));
        let ad =
            ad.map_err(|(field, invalid)| CatalogError::Field { file: file.into(), line: line(), field, invalid })?;
        if let Some(ById(earlier)) = self.ads.replace(ById(Box::new(ad))) {
            return Err(CatalogError::Duplicate { file: file.into(), line: line(), ad_id: earlier.ad_id });
        }
        Ok(())
    }

    /// The ad; with an error, which field is wrong.
    fn parse(
        &mut self,
        fields: [&str; COLUMNS.len()],
        [parameters, fallback_page]: [Option<&str>; OPTIONAL_COLUMNS.len()],
    ) -> Result<Ad, (&'static str, Invalid)> {
        let at = |column: usize| move |invalid| (COLUMNS[column], invalid);
        let optional = |column: usize| move |invalid| (OPTIONAL_COLUMNS[column], invalid);
        let ad_id: AdId = fields[0].parse().map_err(at(0))?;
        let campaign_id = shared(&mut self.campaigns, fields[1]).map_err(at(1))?;
        let publisher_id = shared(&mut self.publishers, fields[2]).map_err(at(2))?;
        let known =
            [("ad_id", ad_id.as_str()), ("campaign_id", campaign_id.as_str()), ("publisher_id", publisher_id.as_str())];
        let fallback_page = fallback_page.map(|page| LandingPage::parse(page, &known).map(Box::new)).transpose();
        let parameters = match parameters {
            None => None,
            Some(text) => match self.parameters.get(text) {
                Some(known) => Some(known.clone()),
                None => {
                    let parsed = Arc::new(text.parse::<Allowed>().map_err(optional(0))?);
                    self.parameters.insert(text.into(), parsed.clone());
                    Some(parsed)
                }
            },
        };
        Ok(Ad {
            landing_page: LandingPage::parse(fields[4], &known).map_err(at(4))?,
            advertiser_id: shared(&mut self.advertisers, fields[3]).map_err(at(3))?,
            state: fields[5].parse().map_err(at(5))?,
            fallback_page: fallback_page.map_err(optional(1))?,
            parameters,
            ad_id,
            campaign_id,
            publisher_id,
        })
    }

    fn end(self) -> Result<Catalog, CatalogError> {
        match self.ads.is_empty() {
            true => Err(CatalogError::Empty { file: self.file.into() }),
            false => Ok(Catalog(self.ads)),
        }
    }
}

/// An id that other ads have as well, once in memory.
fn shared<T: FromStr<Err = Invalid> + Borrow<str> + Hash + Eq + Clone>(
    known: &mut HashSet<T>,
    text: &str,
) -> Result<T, Invalid> {
    if let Some(known) = known.get(text) {
        return Ok(known.clone());
    }
    let id: T = text.parse()?;
    known.insert(id.clone());
    Ok(id)
}

/// The line of a record, from 1. The reader's own count stops short of empty lines before the record.
fn line_of(text: &[u8], position: Option<&csv::Position>) -> u64 {
    let start = position.map_or(0, |position| position.byte() as usize).min(text.len());
    let skipped = text[start..].iter().take_while(|byte| matches!(byte, b'\n' | b'\r')).count();
    1 + text[..start + skipped].iter().filter(|byte| **byte == b'\n').count() as u64
}

fn csv_error(file: &str, text: &[u8], error: csv::Error) -> CatalogError {
    let file = file.to_owned();
    let line = line_of(text, error.position());
    match error.into_kind() {
        csv::ErrorKind::UnequalLengths { expected_len: expected, len: given, .. } => {
            CatalogError::Fields { file, line, given, expected }
        }
        csv::ErrorKind::Utf8 { .. } => CatalogError::NotUtf8 { file, line },
        csv::ErrorKind::Io(error) => CatalogError::Io { file, error },
        other => CatalogError::Io { file, error: std::io::Error::other(format!("{other:?}")) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "ad_id,campaign_id,publisher_id,advertiser_id,landing_page,state\n";
    const LINE: &str = "ad_9,cmp_7,pub_4,adv_1,http://shop.example/?c={click_id},active\n";

    #[test]
    fn a_good_catalog_is_read() {
        let catalog = Catalog::parse("ads.csv", format!("{HEADER}{LINE}\nad_1,c,p,a,https://h,paused\r\n")).unwrap();
        assert_eq!(catalog.ads().count(), 2);
        let ad = catalog.get("ad_9").unwrap();
        assert_eq!(
            (ad.campaign_id.as_str(), ad.publisher_id.as_str(), ad.advertiser_id.as_str(), ad.state),
            ("cmp_7", "pub_4", "adv_1", AdState::Active)
        );
        assert!(catalog.get("ad_2").is_none() && catalog.get("").is_none());
    }

    #[test]
    fn a_bad_catalog_is_refused_with_the_place() {
        let check = |text: &[u8], expected: &str| {
            assert_eq!(Catalog::parse("ads.csv", text).unwrap_err().to_string(), expected);
        };
        let lines = |lines: &str| format!("{HEADER}{lines}");
        let columns = r#"and must be ["ad_id", "campaign_id", "publisher_id", "advertiser_id", "landing_page", "state"], then any of ["parameters", "fallback_page"]"#;
        check(b"", &format!("catalog ads.csv line 1: the columns are [], {columns}"));
        check(b"ad,campaign\n", &format!(r#"catalog ads.csv line 1: the columns are ["ad", "campaign"], {columns}"#));
        check(
            HEADER.as_bytes(),
            "catalog ads.csv: it names no ad, so every click would be turned away; a line an ad must follow the columns",
        );
        check(
            lines(&format!("{LINE}ad_1,c,p\n")).as_bytes(),
            "catalog ads.csv line 3: 3 fields, and there must be 6, one for each column",
        );
        check(
            &[HEADER.as_bytes(), b"ad_\xff,c,p,a,http://h,active\n"].concat(),
            "catalog ads.csv line 2: the text is not UTF-8",
        );
        check(
            lines(&format!("{LINE}\r\n{LINE}")).as_bytes(),
            "catalog ads.csv line 4, field ad_id: ad_9 was given before; an ad has one line",
        );
        let id = "1 to 128 of the characters A-Z a-z 0-9 _ - . ~ :";
        for (line, field, invalid) in [
            ("a d,c,p,a,http://h,active", "ad_id", format!(r#"ad id "a d" is not valid: {id}"#)),
            ("a,,p,a,http://h,active", "campaign_id", format!(r#"campaign id "" is not valid: {id}"#)),
            ("a,c, p,a,http://h,active", "publisher_id", format!(r#"publisher id " p" is not valid: {id}"#)),
            ("a,c,p,ä,http://h,active", "advertiser_id", format!(r#"advertiser id "ä" is not valid: {id}"#)),
            ("a,c,p,a,http://h,on", "state", r#"state "on" is not valid: active, paused or ended"#.to_owned()),
            (
                "a,c,p,a,ftp://h,active",
                "landing_page",
                r#"landing page "ftp://h" is not valid: an absolute http or https URL of at most 2048 printable ASCII characters, with a host"#
                    .to_owned(),
            ),
        ] {
            check(lines(line).as_bytes(), &format!("catalog ads.csv line 2, field {field}: {invalid}"));
        }
    }

    #[test]
    fn an_ad_that_is_over_has_another_page_and_parameters_are_named() {
        let text = "ad_id,campaign_id,publisher_id,advertiser_id,landing_page,state,parameters,fallback_page\n\
            a,c,p,v,http://h/on,active,gclid utm_*,http://h/off\nb,c,p,v,http://h/on,paused,,http://h/off?{ad_id}\n\
            c,c,p,v,http://h/on,ended,,\n";
        let lines = r#"
            {"ad_id":"a","campaign_id":"c","publisher_id":"p","advertiser_id":"v","landing_page":"http://h/on","state":"active","parameters":["gclid","utm_*"],"fallback_page":"http://h/off"}
            {"ad_id":"b","campaign_id":"c","publisher_id":"p","advertiser_id":"v","landing_page":"http://h/on","state":"paused","fallback_page":"http://h/off?{ad_id}"}

            {"ad_id":"c","campaign_id":"c","publisher_id":"p","advertiser_id":"v","landing_page":"http://h/on","state":"ended"}
        "#;
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in [("ads.csv", text), ("ads.jsonl", lines)] {
            std::fs::write(dir.path().join(name), text).unwrap();
            let catalog = Catalog::load(dir.path().join(name)).unwrap();
            for (ad, page) in [("a", "http://h/on?gclid=1"), ("b", "http://h/off?b"), ("c", "http://h/on")] {
                let ad = catalog.get(ad).unwrap();
                let (click, impression) = (click::ClickId::new(click::Millis::new(0)), "i".parse().unwrap());
                assert_eq!(ad.page().location(click, &impression, ad.parameters.as_deref(), "x=1&gclid=1"), page);
            }
        }
        let check = |line: &str, expected: &str| {
            let error = Catalog::parse_json_lines("ads.jsonl", line.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        };
        check("", "catalog ads.jsonl: it names no ad");
        check("\n{}", "catalog ads.jsonl line 2: no ad in JSON: missing field `ad_id`");
        check("[1", "catalog ads.jsonl line 1: no ad in JSON: ");
        let with = |more: &str| {
            format!(
                r#"{{"ad_id":"a","campaign_id":"c","publisher_id":"p","advertiser_id":"v","landing_page":"http://h","state":"on"{more}}}"#
            )
        };
        check(&with(""), r#"catalog ads.jsonl line 1, field state: state "on" is not valid"#);
        check(&with(r#","parameters":["a b","&"]"#), "catalog ads.jsonl line 1, field parameters: parameters");
        check(&with(r#","page":"x""#), "catalog ads.jsonl line 1: no ad in JSON: unknown field `page`");
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = Catalog::load(folder.path().join("none.csv")).unwrap_err().to_string();
        assert!(error.contains("none.csv"), "{error}");
    }

    #[test]
    fn the_sample_is_good() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../catalog/sample.csv");
        let catalog = Catalog::load(path).unwrap();
        let ad = catalog.get("ad_9").unwrap();
        assert_eq!((ad.campaign_id.as_str(), ad.publisher_id.as_str()), ("cmp_7", "pub_4"));
        for state in [AdState::Active, AdState::Paused, AdState::Ended] {
            assert!(catalog.ads().any(|ad| ad.state == state), "{state:?}");
        }
    }
}
