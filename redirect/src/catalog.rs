//! The ad catalog: the authority for campaign, publisher, landing page and state of an ad.

use crate::landing_page::LandingPage;
use click::{AdId, AdvertiserId, CampaignId, Invalid, PublisherId};
use std::collections::HashMap;
use std::path::Path;
use std::str::FromStr;

/// The columns of a catalog file, in their order.
pub const COLUMNS: [&str; 6] = ["ad_id", "campaign_id", "publisher_id", "advertiser_id", "landing_page", "state"];

/// One ad.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ad {
    pub ad_id: AdId,
    pub campaign_id: CampaignId,
    pub publisher_id: PublisherId,
    pub advertiser_id: AdvertiserId,
    pub landing_page: LandingPage,
    pub state: AdState,
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
pub struct Catalog(HashMap<AdId, Ad>);

/// Why a catalog is refused as a whole: half a catalog would turn clicks away.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    #[error("catalog {file}: {error}")]
    Io { file: String, error: std::io::Error },
    #[error("catalog {file} line {line}: the columns are {given:?}, and must be {COLUMNS:?}")]
    Columns { file: String, line: u64, given: Vec<String> },
    #[error("catalog {file} line {line}: {given} fields, and there must be {}, one for each of {COLUMNS:?}", COLUMNS.len())]
    Fields { file: String, line: u64, given: u64 },
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

impl Catalog {
    /// Reads a CSV file with the columns [`COLUMNS`].
    pub fn load(path: impl AsRef<Path>) -> Result<Self, CatalogError> {
        let file = path.as_ref().display().to_string();
        match std::fs::read(path) {
            Ok(bytes) => Self::parse(&file, bytes),
            Err(error) => Err(CatalogError::Io { file, error }),
        }
    }

    /// Parses the text of a catalog. `file` names it in errors.
    pub fn parse(file: &str, text: impl AsRef<[u8]>) -> Result<Self, CatalogError> {
        let text = text.as_ref();
        let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(text);
        let mut records = reader.records();
        let mut ads = HashMap::new();
        let columns = records.next().transpose().map_err(|error| csv_error(file, text, error))?.unwrap_or_default();
        if columns != COLUMNS[..] {
            let given = columns.iter().map(|name| name.chars().take(80).collect()).take(20).collect();
            return Err(CatalogError::Columns { file: file.to_owned(), line: 1, given });
        }
        for record in records {
            let record = record.map_err(|error| csv_error(file, text, error))?;
            let line = || line_of(text, record.position());
            let ad = parse_ad(&record).map_err(|(field, invalid)| CatalogError::Field {
                file: file.to_owned(),
                line: line(),
                field,
                invalid,
            })?;
            if let Some(earlier) = ads.insert(ad.ad_id.clone(), ad) {
                return Err(CatalogError::Duplicate { file: file.to_owned(), line: line(), ad_id: earlier.ad_id });
            }
        }
        if ads.is_empty() {
            return Err(CatalogError::Empty { file: file.to_owned() });
        }
        Ok(Catalog(ads))
    }

    /// The ad of this id. Text that is no id names no ad.
    pub fn get(&self, ad_id: &str) -> Option<&Ad> {
        self.0.get(ad_id)
    }

    /// All ads, in no order.
    pub fn ads(&self) -> impl Iterator<Item = &Ad> {
        self.0.values()
    }
}

/// The fields of a line, in the order of [`COLUMNS`]; with an error, which of them is wrong.
fn parse_ad(record: &csv::StringRecord) -> Result<Ad, (&'static str, Invalid)> {
    fn field<T: FromStr<Err = Invalid>>(record: &csv::StringRecord, at: usize) -> Result<T, (&'static str, Invalid)> {
        record.get(at).unwrap_or_default().parse().map_err(|invalid| (COLUMNS[at], invalid))
    }
    let (ad_id, campaign_id, publisher_id) =
        (field::<AdId>(record, 0)?, field::<CampaignId>(record, 1)?, field::<PublisherId>(record, 2)?);
    let known =
        [("ad_id", ad_id.as_str()), ("campaign_id", campaign_id.as_str()), ("publisher_id", publisher_id.as_str())];
    let landing_page = LandingPage::parse(record.get(4).unwrap_or_default(), &known).map_err(|e| (COLUMNS[4], e))?;
    Ok(Ad {
        advertiser_id: field(record, 3)?,
        landing_page,
        state: field(record, 5)?,
        ad_id,
        campaign_id,
        publisher_id,
    })
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
        csv::ErrorKind::UnequalLengths { len, .. } => CatalogError::Fields { file, line, given: len },
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
        let columns =
            r#"and must be ["ad_id", "campaign_id", "publisher_id", "advertiser_id", "landing_page", "state"]"#;
        check(b"", &format!("catalog ads.csv line 1: the columns are [], {columns}"));
        check(b"ad,campaign\n", &format!(r#"catalog ads.csv line 1: the columns are ["ad", "campaign"], {columns}"#));
        check(
            HEADER.as_bytes(),
            "catalog ads.csv: it names no ad, so every click would be turned away; a line an ad must follow the columns",
        );
        check(
            lines(&format!("{LINE}ad_1,c,p\n")).as_bytes(),
            r#"catalog ads.csv line 3: 3 fields, and there must be 6, one for each of ["ad_id", "campaign_id", "publisher_id", "advertiser_id", "landing_page", "state"]"#,
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
