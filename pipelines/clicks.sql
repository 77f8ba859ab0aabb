-- What is counted, and how.
--
-- Every record of the topic `clicks` gets one verdict. All of them go to `raw_clicks`; the billable ones are counted
-- by minute and dimension into `clicks_by_minute`. The loader compares the two before it calls a minute final.
--
-- This is Arroyo SQL; on one machine Tally's own runner runs the same file. Names in dollar braces are filled in from
-- configuration. A changed file is a new version: what is final stays as it is, everything after is judged anew.

-- Every record of the log, as the redirect wrote it. Three columns are the log's own: when it took the record
-- (`appended_ms`), and where it lies. The log's time is the one that decides what is late, since one clock made it.
CREATE TABLE clicks (
  kind TEXT,
  "clickId" TEXT,
  "impressionId" TEXT,
  "adId" TEXT,
  "campaignId" TEXT,
  "publisherId" TEXT,
  "timestamp" TIMESTAMP,
  "ipHash" TEXT,
  "userAgent" TEXT,
  country TEXT,
  "seenBefore" BOOLEAN,
  attempt INT,
  "invalidReason" TEXT,
  appended_ms BIGINT NOT NULL METADATA FROM 'timestamp',
  log_partition INT NOT NULL METADATA FROM 'partition',
  log_offset BIGINT NOT NULL METADATA FROM 'offset_id',
  appended_at TIMESTAMP NOT NULL GENERATED ALWAYS AS
    (CAST(arrow_cast(appended_ms, 'Timestamp(Millisecond, None)') AS TIMESTAMP)) STORED,
  -- A redirect whose clock is ahead cannot put a click into the future: a click is never later than its record.
  clicked_at TIMESTAMP NOT NULL GENERATED ALWAYS AS
    (LEAST("timestamp", CAST(arrow_cast(appended_ms, 'Timestamp(Millisecond, None)') AS TIMESTAMP))) STORED,
  -- An on-time record is at most ${LATENESS} older than the log's time, and the clocks of the log's machines differ by
  -- at most ${SLACK}: so no on-time record is ever behind the watermark.
  WATERMARK FOR clicked_at AS
    (CAST(arrow_cast(appended_ms, 'Timestamp(Millisecond, None)') AS TIMESTAMP)
      - INTERVAL '${LATENESS}' - INTERVAL '${SLACK}')
) WITH (
  connector = 'kafka', bootstrap_servers = '${KAFKA}', topic = 'clicks', type = 'source', format = 'json',
  -- A record that is no JSON is left out here. The loader finds the hole, and keeps the record's bytes in quarantine.
  bad_data = 'drop',
  'source.offset' = 'group', 'source.group_id' = '${GROUP}', client_configs = 'auto.offset.reset=error'
);

-- One row for every record, heartbeats too: a hole in the offsets is a lost record.
CREATE TABLE raw_clicks (
  log_id TEXT, log_partition INT, log_offset BIGINT, kind TEXT,
  click_id TEXT, impression_id TEXT, ad_id TEXT, campaign_id TEXT, publisher_id TEXT,
  "timestamp" TIMESTAMP, appended_at TIMESTAMP, country TEXT, device TEXT, ip_hash TEXT, user_agent TEXT,
  seen_before BOOLEAN, attempt INT, invalid_reason TEXT, verdict TEXT, version BIGINT
) WITH (connector = 'kafka', bootstrap_servers = '${KAFKA}', topic = 'raw_clicks', type = 'sink', format = 'json');

CREATE TABLE clicks_by_minute (
  minute TIMESTAMP, ad_id TEXT, campaign_id TEXT, publisher_id TEXT, country TEXT, device TEXT,
  clicks BIGINT, version BIGINT
) WITH (connector = 'kafka', bootstrap_servers = '${KAFKA}', topic = 'clicks_by_minute', type = 'sink', format = 'json');

-- What is wrong with a record, if anything, before duplicates are looked at. Edit the rules here and in
-- udfs/src/bot_reason.rs. The order matters only for which reason is shown: any reason means that it is not billed.
CREATE VIEW reasons AS
SELECT log_partition, log_offset, appended_ms, kind,
  "clickId" AS click_id, "impressionId" AS impression_id, "adId" AS ad_id, "campaignId" AS campaign_id,
  "publisherId" AS publisher_id, "timestamp" AS clicked, clicked_at, appended_at, country,
  device_class("userAgent") AS device,
  "ipHash" AS ip_hash, "userAgent" AS user_agent, "seenBefore" AS seen_before, attempt,
  "invalidReason" AS invalid_reason,
  CASE WHEN kind <> 'click' THEN kind
       WHEN "invalidReason" IS NOT NULL THEN "invalidReason"
       WHEN kind IS NULL OR "clickId" IS NULL OR "impressionId" IS NULL OR "adId" IS NULL OR "campaignId" IS NULL
         OR "publisherId" IS NULL OR country IS NULL OR "timestamp" IS NULL OR "userAgent" IS NULL THEN 'malformed'
       ELSE bot_reason("userAgent") END AS reason
FROM clicks;

-- Only a record with nothing wrong claims its impression. Otherwise a mail scanner's fetch would make the person's
-- click after it a duplicate. The first six columns are claim_click's arguments in its order: Arroyo needs them there
-- to recover.
CREATE VIEW judged AS
SELECT CASE WHEN reason IS NULL THEN impression_id END AS claim_key, '${LOG_ID}' AS log_id, log_partition, log_offset,
  appended_ms, CAST(${VERSION} AS BIGINT) AS version,
  kind, click_id, impression_id, ad_id, campaign_id, publisher_id, clicked, clicked_at, appended_at, country, device,
  ip_hash, user_agent, seen_before, attempt, invalid_reason, reason
FROM reasons;

-- The first position that claims an impression within the dedup horizon gets 1, every other 0. A late click is
-- billed too, but as a correction of its minute: the minute itself may be final already.
CREATE VIEW verdicts AS
SELECT log_id, log_partition, log_offset, kind, click_id, impression_id, ad_id, campaign_id, publisher_id, clicked,
  clicked_at, appended_at, country, device, ip_hash, user_agent, seen_before, attempt, invalid_reason, version,
  CASE WHEN reason IS NOT NULL THEN reason
       WHEN first_claim = 0 THEN 'duplicate'
       WHEN first_claim = 1 AND clicked_at < appended_at - INTERVAL '${LATENESS}' THEN 'late'
       WHEN first_claim = 1 THEN 'billable'
       ELSE 'undecided' END AS verdict
FROM (
  SELECT *, claim_click(claim_key, log_id, log_partition, log_offset, appended_ms, version) AS first_claim FROM judged
);

-- Arroyo's operator chaining can lose one of the two ways out of `verdicts`; with this number of views it loses none.
-- After a change here look at the planned graph: every node but the source must have an edge into it.
CREATE VIEW billable AS
SELECT clicked_at, ad_id, campaign_id, publisher_id, country, device FROM verdicts WHERE verdict = 'billable';

CREATE VIEW minutes AS
SELECT tumble(INTERVAL '1 minute') AS window, ad_id, campaign_id, publisher_id, country, device, count(*) AS clicks
FROM billable
GROUP BY window, ad_id, campaign_id, publisher_id, country, device;

INSERT INTO raw_clicks
SELECT log_id, log_partition, log_offset, kind, click_id, impression_id, ad_id, campaign_id, publisher_id, clicked,
  appended_at, country, device, ip_hash, user_agent, seen_before, attempt, invalid_reason, verdict, version
FROM verdicts;

INSERT INTO clicks_by_minute
SELECT window.start, ad_id, campaign_id, publisher_id, country, device, clicks, CAST(${VERSION} AS BIGINT) FROM minutes;
