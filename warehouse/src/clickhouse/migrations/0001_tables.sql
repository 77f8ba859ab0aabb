-- What is final, what came with it, and what is not final yet.
--
-- Rows of a closing carry its number, and it is a part of their sort key: rows of one key are copies of one row, so reads
-- with FINAL count each once, merged or not. Times are in UTC. Deduplication by insert token only spares the server
-- work. Inserts are fsynced before they are acknowledged.

-- One row for every offset of the log.
CREATE TABLE IF NOT EXISTS raw_clicks
(
    log_id         LowCardinality(String),
    partition      Int32,
    offset         Int64,
    appended_at    DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD),
    timestamp      Nullable(DateTime64(3, 'UTC')),
    verdict        LowCardinality(String),
    version        Int64,
    kind           LowCardinality(Nullable(String)),
    click_id       Nullable(String),
    impression_id  Nullable(String),
    ad_id          Nullable(String),
    campaign_id    Nullable(String),
    publisher_id   Nullable(String),
    country        LowCardinality(Nullable(String)),
    device         LowCardinality(Nullable(String)),
    ip_hash        Nullable(String),
    user_agent     Nullable(String),
    seen_before    Nullable(Bool),
    attempt        Nullable(Int64),
    invalid_reason LowCardinality(Nullable(String)),
    closing        UInt64,
    INDEX appended_at_range appended_at TYPE minmax GRANULARITY 1,
    INDEX click_ids click_id TYPE bloom_filter GRANULARITY 4,
    INDEX impression_ids impression_id TYPE bloom_filter GRANULARITY 4
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(appended_at)
ORDER BY (log_id, partition, offset, closing)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1;

-- Records of the log that are no clicks.
CREATE TABLE IF NOT EXISTS quarantine
(
    log_id      LowCardinality(String),
    partition   Int32,
    offset      Int64,
    appended_at DateTime64(3, 'UTC'),
    bytes       String,
    error       String,
    closing     UInt64
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(appended_at)
ORDER BY (log_id, partition, offset, closing)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1;

-- Clicks that were added to final minutes, or taken from them, after the fact. Reports read their sums.
CREATE TABLE IF NOT EXISTS click_corrections
(
    log_id       LowCardinality(String),
    partition    Int32,
    offset       Int64,
    kind         LowCardinality(String),
    minute       DateTime64(3, 'UTC'),
    ad_id        String,
    campaign_id  String,
    publisher_id String,
    country      LowCardinality(String),
    device       LowCardinality(String),
    delta        Int64,
    reason       String,
    closing      UInt64
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(minute)
ORDER BY (closing, log_id, partition, offset, kind)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1;

-- Sums of the corrections of each closing.
CREATE TABLE IF NOT EXISTS corrections_by_minute
(
    minute       DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD),
    ad_id        String CODEC(ZSTD),
    campaign_id  String CODEC(ZSTD),
    publisher_id String CODEC(ZSTD),
    country      LowCardinality(String),
    device       LowCardinality(String),
    delta        Int64 CODEC(T64, ZSTD),
    closing      UInt64 CODEC(Delta, ZSTD)
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(minute)
ORDER BY (campaign_id, minute, ad_id, publisher_id, country, device, closing)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS corrections_by_quarter_hour
(
    quarter_hour DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD),
    ad_id        String CODEC(ZSTD),
    campaign_id  String CODEC(ZSTD),
    publisher_id String CODEC(ZSTD),
    country      LowCardinality(String),
    device       LowCardinality(String),
    delta        Int64 CODEC(T64, ZSTD),
    closing      UInt64 CODEC(Delta, ZSTD)
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(quarter_hour)
ORDER BY (campaign_id, quarter_hour, ad_id, publisher_id, country, device, closing)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS corrections_by_day
(
    day          DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD),
    ad_id        String CODEC(ZSTD),
    campaign_id  String CODEC(ZSTD),
    publisher_id String CODEC(ZSTD),
    country      LowCardinality(String),
    device       LowCardinality(String),
    delta        Int64 CODEC(T64, ZSTD),
    closing      UInt64 CODEC(Delta, ZSTD)
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(day)
ORDER BY (campaign_id, day, ad_id, publisher_id, country, device, closing)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1;

-- Clicks of final minutes. Most reports are about one campaign.
CREATE TABLE IF NOT EXISTS clicks_by_minute
(
    minute       DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD),
    ad_id        String CODEC(ZSTD),
    campaign_id  String CODEC(ZSTD),
    publisher_id String CODEC(ZSTD),
    country      LowCardinality(String),
    device       LowCardinality(String),
    clicks       Int64 CODEC(T64, ZSTD),
    closing      UInt64 CODEC(Delta, ZSTD)
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(minute)
ORDER BY (campaign_id, minute, ad_id, publisher_id, country, device, closing)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1;

-- Their sums.
CREATE TABLE IF NOT EXISTS clicks_by_quarter_hour
(
    quarter_hour DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD),
    ad_id        String CODEC(ZSTD),
    campaign_id  String CODEC(ZSTD),
    publisher_id String CODEC(ZSTD),
    country      LowCardinality(String),
    device       LowCardinality(String),
    clicks       Int64 CODEC(T64, ZSTD),
    closing      UInt64 CODEC(Delta, ZSTD)
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(quarter_hour)
ORDER BY (campaign_id, quarter_hour, ad_id, publisher_id, country, device, closing)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1;

CREATE TABLE IF NOT EXISTS clicks_by_day
(
    day          DateTime64(3, 'UTC') CODEC(DoubleDelta, ZSTD),
    ad_id        String CODEC(ZSTD),
    campaign_id  String CODEC(ZSTD),
    publisher_id String CODEC(ZSTD),
    country      LowCardinality(String),
    device       LowCardinality(String),
    clicks       Int64 CODEC(T64, ZSTD),
    closing      UInt64 CODEC(Delta, ZSTD)
)
ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(day)
ORDER BY (campaign_id, day, ad_id, publisher_id, country, device, closing)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1;

-- The sequence of deployments and closings. Nothing that a closing wrote counts before its entry of kind
-- 'closing' or 'repair'.
CREATE TABLE IF NOT EXISTS closings
(
    number           UInt64,
    kind             LowCardinality(String),
    through          DateTime64(3, 'UTC'),
    version          Int64,
    log_id           LowCardinality(String),
    positions        String,
    result_positions String,
    digest           String,
    totals           String,
    quarantined      String,
    finalized_at     DateTime64(3, 'UTC'),
    writer           String
)
ENGINE = MergeTree
ORDER BY (kind, number)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1;

-- Closings and repairs that began and were overtaken by a deployment of their number: their rows never count.
CREATE VIEW IF NOT EXISTS abandoned_closings AS
SELECT number FROM closings
WHERE kind IN ('begun', 'repair_begun') AND number IN (SELECT number FROM closings WHERE kind = 'deployment');

-- Which tables a closing has written whole. Only a closing that is being written looks here.
CREATE TABLE IF NOT EXISTS closing_steps
(
    number  UInt64,
    step    LowCardinality(String),
    done_at DateTime DEFAULT now()
)
ENGINE = ReplacingMergeTree
ORDER BY (number, step)
TTL done_at + INTERVAL 30 DAY
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1;

-- Counts that are not final yet, as changes since the beginning of an epoch of their loader. An epoch is dropped whole,
-- ten minutes after readers were given a newer one.
CREATE TABLE IF NOT EXISTS provisional
(
    epoch        UInt64,
    loader       String,
    sequence     UInt64,
    minute       DateTime64(3, 'UTC'),
    ad_id        String,
    campaign_id  String,
    publisher_id String,
    country      LowCardinality(String),
    device       LowCardinality(String),
    clicks       Int64
)
ENGINE = ReplacingMergeTree
PARTITION BY epoch
ORDER BY (epoch, loader, campaign_id, minute, ad_id, publisher_id, country, device, sequence)
SETTINGS non_replicated_deduplication_window = 1000;

-- What readers may see of them: all changes of an epoch up to a sequence, beside closings up to one.
CREATE TABLE IF NOT EXISTS publications
(
    epoch        UInt64,
    loader       String,
    sequence     UInt64,
    closing      UInt64,
    through      DateTime64(3, 'UTC'),
    refreshed_at DateTime64(3, 'UTC'),
    published_at DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = MergeTree
PARTITION BY epoch
ORDER BY (closing, epoch, sequence)
SETTINGS non_replicated_deduplication_window = 1000;
