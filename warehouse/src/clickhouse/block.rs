//! Rows in ClickHouse's `RowBinary`, as the tables have them.

use crate::rows::{Correction, Count, Quarantined, RawRow};
use click::{Dimensions, Millis};

/// Bytes of rows, and how many.
#[derive(Default)]
pub(super) struct Block {
    bytes: Vec<u8>,
    rows: u64,
    /// The times that the rows are about: first and last.
    times: Option<(Millis, Millis)>,
}

impl Block {
    pub fn rows(&self) -> u64 {
        self.rows
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn into_bytes(self) -> bytes::Bytes {
        self.bytes.into()
    }

    pub fn times(&self) -> Option<(Millis, Millis)> {
        self.times
    }

    /// Counts the rows of another block among its own, without their bytes.
    pub fn count(&mut self, other: &Block) {
        self.rows += other.rows;
        if let Some((first, last)) = other.times {
            self.stretch(first, last);
        }
    }

    fn stretch(&mut self, first: Millis, last: Millis) {
        self.times = Some(self.times.map_or((first, last), |known| (known.0.min(first), known.1.max(last))));
    }

    pub fn push<T: Encode>(&mut self, row: &T, closing: u64) {
        row.encode(self);
        self.unsigned(closing);
        let at = row.time();
        self.stretch(at, at);
        self.rows += 1;
    }

    pub fn text(&mut self, text: impl AsRef<[u8]>) {
        let text = text.as_ref();
        let mut length = text.len();
        while length > 0x7f {
            self.bytes.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        self.bytes.push(length as u8);
        self.bytes.extend_from_slice(text);
    }

    pub fn unsigned(&mut self, number: u64) {
        self.bytes.extend_from_slice(&number.to_le_bytes());
    }

    pub fn long(&mut self, number: i64) {
        self.bytes.extend_from_slice(&number.to_le_bytes());
    }

    fn int(&mut self, number: i32) {
        self.bytes.extend_from_slice(&number.to_le_bytes());
    }

    /// `DateTime64(3)`.
    pub fn time(&mut self, at: Millis) {
        self.long(at.get());
    }

    fn maybe<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Self, T)) {
        self.bytes.push(u8::from(value.is_none()));
        if let Some(value) = value {
            put(self, value);
        }
    }

    fn maybe_text(&mut self, text: &Option<String>) {
        self.maybe(text.as_deref(), |block, text: &str| block.text(text));
    }

    pub fn dimensions(&mut self, dimensions: &Dimensions) {
        for value in dimensions.values() {
            self.text(&**value);
        }
    }
}

/// A row of a table that closings write.
pub(super) trait Encode: Send + Sync + 'static {
    const TABLE: &'static str;
    /// All columns but the last one, `closing`.
    const COLUMNS: &'static str;
    /// The column of [`time`](Encode::time).
    const TIME_COLUMN: &'static str;
    fn time(&self) -> Millis;
    fn encode(&self, block: &mut Block);
}

impl Encode for RawRow {
    const TABLE: &'static str = "raw_clicks";
    const COLUMNS: &'static str = "log_id, partition, offset, appended_at, timestamp, verdict, version, kind, click_id, \
         impression_id, ad_id, campaign_id, publisher_id, country, device, ip_hash, user_agent, seen_before, attempt, \
         invalid_reason";
    const TIME_COLUMN: &'static str = "appended_at";

    fn time(&self) -> Millis {
        self.appended_at
    }

    fn encode(&self, block: &mut Block) {
        block.text(self.log_id.to_string());
        block.int(self.log_partition);
        block.long(self.log_offset);
        block.time(self.appended_at);
        block.maybe(self.timestamp, Block::time);
        block.text(&self.verdict);
        block.long(self.version);
        for text in [&self.kind, &self.click_id, &self.impression_id, &self.ad_id, &self.campaign_id] {
            block.maybe_text(text);
        }
        for text in [&self.publisher_id, &self.country, &self.device, &self.ip_hash, &self.user_agent] {
            block.maybe_text(text);
        }
        block.maybe(self.seen_before, |block, seen| block.bytes.push(u8::from(seen)));
        block.maybe(self.attempt, Block::long);
        block.maybe_text(&self.invalid_reason);
    }
}

impl Encode for Quarantined {
    const TABLE: &'static str = "quarantine";
    const COLUMNS: &'static str = "log_id, partition, offset, appended_at, bytes, error";
    const TIME_COLUMN: &'static str = "appended_at";

    fn time(&self) -> Millis {
        self.appended_at
    }

    fn encode(&self, block: &mut Block) {
        block.text(self.log_id.to_string());
        block.int(self.partition);
        block.long(self.offset);
        block.time(self.appended_at);
        block.text(&self.bytes);
        block.text(&self.error);
    }
}

impl Encode for Correction {
    const TABLE: &'static str = "click_corrections";
    const COLUMNS: &'static str = "log_id, partition, offset, kind, minute, ad_id, campaign_id, publisher_id, country, \
         device, delta, reason";
    const TIME_COLUMN: &'static str = "minute";

    fn time(&self) -> Millis {
        self.count.minute.start()
    }

    fn encode(&self, block: &mut Block) {
        block.text(self.log_id.to_string());
        block.int(self.partition);
        block.long(self.offset);
        block.text(self.kind);
        block.time(self.count.minute.start());
        block.dimensions(&self.count.dimensions);
        block.long(self.count.clicks);
        block.text(&self.reason);
    }
}

impl Encode for Count {
    const TABLE: &'static str = "clicks_by_minute";
    const COLUMNS: &'static str = "minute, ad_id, campaign_id, publisher_id, country, device, clicks";
    const TIME_COLUMN: &'static str = "minute";

    fn time(&self) -> Millis {
        self.minute.start()
    }

    fn encode(&self, block: &mut Block) {
        block.time(self.minute.start());
        block.dimensions(&self.dimensions);
        block.long(self.clicks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_have_their_length_before_them() {
        let mut block = Block::default();
        block.text("");
        block.text("é");
        block.text([7_u8; 300]);
        assert_eq!(block.bytes()[..6], [0, 2, 0xc3, 0xa9, 0xac, 0x02]);
        assert_eq!(block.bytes().len(), 6 + 300);
        let mut block = Block::default();
        block.maybe_text(&None);
        block.maybe_text(&Some(String::new()));
        block.maybe(Some(-1), Block::long);
        assert_eq!(block.bytes(), [1, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255]);
    }
}
