//! A small text with its checksum in the line after it: a person can read it, and a bit that flipped is found.

use xxhash_rust::xxh3::xxh3_64;

/// Why a text is not what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    #[error("it is not two lines of text")]
    NotTwoLines,
    #[error("its checksum is wrong")]
    Checksum,
}

/// The line, and the line with its checksum. `line` has no line break in it, as JSON has none.
pub fn with_sum(line: &str) -> String {
    format!("{line}\n{}\n", sum(line))
}

/// The line, if it is as it was written.
///
/// # Errors
/// Says what is wrong; the caller knows the file.
pub fn line(bytes: &[u8]) -> Result<&str, Wrong> {
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    let (line, found) = text.split_once('\n').ok_or(Wrong::NotTwoLines)?;
    if found.strip_suffix('\n') != Some(sum(line).as_str()) {
        return Err(Wrong::Checksum);
    }
    Ok(line)
}

/// The checksum of a text: 16 hexadecimal digits.
pub fn sum(text: &str) -> String {
    format!("{:016x}", xxh3_64(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let whole = with_sum(r#"{"next":[1,20]}"#).into_bytes();
        assert_eq!(line(&whole), Ok(r#"{"next":[1,20]}"#));
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(line(&flipped).is_err(), "bit {bit}");
        }
        for len in 0..whole.len() {
            assert!(line(&whole[..len]).is_err(), "{len} bytes");
        }
    }
}
