//! The country of an address, from a file in the MaxMind DB format: GeoLite2-Country, DB-IP's or one of your own.

use crate::reload::{LoadError, Reloaded};
use click::Country;
use maxminddb::{MaxMindDbError, PathElement, Reader};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

/// A country for each network.
pub struct Countries(Reader<Vec<u8>>);

/// Why a file is refused.
#[derive(Debug, thiserror::Error)]
pub enum CountryError {
    #[error("country file: {0}")]
    Io(#[from] std::io::Error),
    #[error("country file {file}: {error}")]
    Format { file: String, error: MaxMindDbError },
}

impl LoadError for CountryError {
    fn io(&self) -> Option<&std::io::Error> {
        match self {
            CountryError::Io(error) => Some(error),
            _ => None,
        }
    }
}

/// Where the code stands: of the country where an address is, else of the one where it is registered.
const PLACES: [[PathElement<'static>; 2]; 2] = [
    [PathElement::Key("country"), PathElement::Key("iso_code")],
    [PathElement::Key("registered_country"), PathElement::Key("iso_code")],
];

impl Countries {
    /// Reads a file and checks all of it.
    ///
    /// # Errors
    /// If it cannot be read, or is not whole.
    pub fn load(path: &Path) -> Result<Countries, CountryError> {
        let file = path.display().to_string();
        let bytes =
            std::fs::read(path).map_err(|error| std::io::Error::new(error.kind(), format!("{file}: {error}")))?;
        let checked = Reader::from_source(bytes).and_then(|reader| reader.verify().map(|()| reader));
        checked.map(Countries).map_err(|error| CountryError::Format { file, error })
    }

    /// The countries of a file, loaded again when it changes, if there is one.
    ///
    /// # Errors
    /// As for [`Countries::load`].
    pub fn follow(path: Option<&Path>) -> Result<Option<Arc<Reloaded<Countries>>>, CountryError> {
        path.map(|path| Reloaded::open(path, "country file", Countries::load)).transpose()
    }

    /// The country of an address, if the file knows one.
    pub fn of(&self, address: IpAddr) -> Option<Country> {
        // An IPv6 address in a file of IPv4 ones is none that it knows.
        let found = self.0.lookup(address).ok()?;
        PLACES.iter().find_map(|place| found.decode_path::<&str>(place).ok()??.parse().ok())
    }
}

#[cfg(test)]
#[path = "../tests/app/mmdb.rs"]
mod mmdb;

#[cfg(test)]
mod tests {
    use super::mmdb::sample;
    use super::*;

    #[test]
    fn a_file_knows_countries() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("countries.mmdb");
        std::fs::write(&path, sample("DE")).unwrap();
        let countries = Countries::load(&path).unwrap();
        let check = |address: &str, expected: Option<&str>| {
            let found = countries.of(address.parse().unwrap()).map(|country| country.to_string());
            assert_eq!(found.as_deref(), expected, "{address}");
        };
        check("192.0.2.200", Some("DE"));
        check("192.0.3.1", None);
        check("2001:db8::7", Some("FR"));
        check("2001:db9::7", None);
        std::fs::write(&path, &sample("DE")[..100]).unwrap();
        let error = Countries::load(&path).err().unwrap().to_string();
        assert!(error.starts_with("country file ") && error.contains("countries.mmdb"), "{error}");
        assert!(Countries::load(&dir.path().join("none")).err().unwrap().to_string().contains("none"));
    }
}
