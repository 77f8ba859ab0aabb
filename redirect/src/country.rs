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
pub(crate) mod tests {
    use super::*;

    /// A file that says `DE` of 192.0.2.0/24, and `FR` of 2001:db8::/32, where that is registered.
    pub(crate) fn sample() -> Vec<u8> {
        let mut data = Vec::new();
        let mut offsets = Vec::new();
        for (key, code) in [("country", "DE"), ("registered_country", "FR")] {
            offsets.push(data.len() as u32);
            map(&mut data, 1);
            text(&mut data, key);
            map(&mut data, 1);
            text(&mut data, "iso_code");
            text(&mut data, code);
        }
        let mut nodes: Vec<[Option<Next>; 2]> = vec![[None, None]];
        // IPv4 addresses stand at ::/96.
        insert(&mut nodes, u128::from(u32::from_be_bytes([192, 0, 2, 0])), 96 + 24, offsets[0]);
        insert(&mut nodes, 0x2001_0db8 << 96, 32, offsets[1]);
        let count = nodes.len() as u32;
        let mut file = Vec::new();
        for side in nodes.iter().flatten() {
            let record = match side {
                None => count,
                Some(Next::Node(node)) => *node,
                Some(Next::Data(offset)) => count + 16 + offset,
            };
            file.extend_from_slice(&record.to_be_bytes()[1..]);
        }
        file.extend_from_slice(&[0; 16]);
        file.extend_from_slice(&data);
        file.extend_from_slice(b"\xab\xcd\xefMaxMind.com");
        map(&mut file, 9);
        for (key, kind, value) in [
            ("binary_format_major_version", 5, 2_u32),
            ("binary_format_minor_version", 5, 0),
            ("ip_version", 5, 6),
            ("record_size", 5, 24),
            ("node_count", 6, count),
        ] {
            text(&mut file, key);
            let bytes: Vec<u8> = value.to_be_bytes().into_iter().skip_while(|byte| *byte == 0).collect();
            file.push(kind << 5 | bytes.len() as u8);
            file.extend_from_slice(&bytes);
        }
        text(&mut file, "build_epoch");
        file.extend_from_slice(&[1, 2, 9]);
        text(&mut file, "database_type");
        text(&mut file, "Test-Country");
        text(&mut file, "description");
        map(&mut file, 1);
        text(&mut file, "en");
        text(&mut file, "for tests");
        text(&mut file, "languages");
        file.extend_from_slice(&[1, 4]);
        text(&mut file, "en");
        file
    }

    #[derive(Clone, Copy)]
    enum Next {
        Node(u32),
        Data(u32),
    }

    fn insert(nodes: &mut Vec<[Option<Next>; 2]>, network: u128, bits: u32, offset: u32) {
        let mut at = 0;
        for bit in 0..bits {
            let side = (network >> (127 - bit) & 1) as usize;
            if bit + 1 == bits {
                nodes[at][side] = Some(Next::Data(offset));
            } else if let Some(Next::Node(node)) = nodes[at][side] {
                at = node as usize;
            } else {
                nodes.push([None, None]);
                let node = nodes.len() - 1;
                nodes[at][side] = Some(Next::Node(node as u32));
                at = node;
            }
        }
    }

    fn map(to: &mut Vec<u8>, pairs: u8) {
        to.push(7 << 5 | pairs);
    }

    fn text(to: &mut Vec<u8>, text: &str) {
        match text.len() as u8 {
            bytes @ 0..29 => to.push(2 << 5 | bytes),
            bytes => to.extend_from_slice(&[2 << 5 | 29, bytes - 29]),
        }
        to.extend_from_slice(text.as_bytes());
    }

    #[test]
    fn a_file_knows_countries() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("countries.mmdb");
        std::fs::write(&path, sample()).unwrap();
        let countries = Countries::load(&path).unwrap();
        let check = |address: &str, expected: Option<&str>| {
            let found = countries.of(address.parse().unwrap()).map(|country| country.to_string());
            assert_eq!(found.as_deref(), expected, "{address}");
        };
        check("192.0.2.200", Some("DE"));
        check("192.0.3.1", None);
        check("2001:db8::7", Some("FR"));
        check("2001:db9::7", None);
        std::fs::write(&path, &sample()[..100]).unwrap();
        let error = Countries::load(&path).err().unwrap().to_string();
        assert!(error.starts_with("country file ") && error.contains("countries.mmdb"), "{error}");
        assert!(Countries::load(&dir.path().join("none")).err().unwrap().to_string().contains("none"));
    }
}
