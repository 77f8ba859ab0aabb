//! Networks in a configuration: CIDR, or an address alone, which is a network of one.

use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de::Error};
use std::net::IpAddr;

/// Reads a list of networks.
///
/// # Errors
/// Names the first that is none.
pub fn networks<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<IpNet>, D::Error> {
    let texts = Vec::<String>::deserialize(from)?;
    texts
        .into_iter()
        .map(|text| {
            network(&text)
                .ok_or_else(|| D::Error::custom(format!("{text:?} is no address and no network such as 10.0.0.0/8")))
        })
        .collect()
}

/// A network, or the network of one address. IPv4 in IPv6 is IPv4.
pub(crate) fn network(text: &str) -> Option<IpNet> {
    let alone = || text.parse::<IpAddr>().ok().map(|address| IpNet::from(address.to_canonical()));
    text.parse::<IpNet>().ok().map(|network| network.trunc()).or_else(alone)
}
