//! The functions that pipelines call beside DataFusion's own.

use crate::claims::{Asked, Claims};
use click::{LogId, Millis};
use datafusion::arrow::array::{Array, ArrayRef, AsArray, Int64Array, StringBuilder};
use datafusion::arrow::datatypes::{DataType, Field, Fields, Int32Type, Int64Type, TimeUnit};
use datafusion::common::{Result, exec_datafusion_err, exec_err};
use datafusion::logical_expr::{
    ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, TypeSignature, Volatility,
};
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex};

/// Where `claim_click` asks. Empty while a file is only checked.
pub type SharedClaims = Arc<Mutex<Option<Claims>>>;

/// Who answers `claim_click`: an answer for each record that a version asks about, in their order.
pub type Ask = Arc<dyn Fn(i64, &[Asked<'_>]) -> Result<Vec<Option<i64>>> + Send + Sync>;

/// The functions, ready to be registered.
pub fn all(claims: SharedClaims) -> Vec<ScalarUDF> {
    asking(Arc::new(move |version, asked| {
        let mut claims = claims.lock().map_err(|_| exec_datafusion_err!("claims failed before"))?;
        let claims = claims.as_mut().ok_or_else(|| exec_datafusion_err!("claims are not open"))?;
        if version != claims.version() {
            return exec_err!("claim_click of version {version} asks, and claims are open for {}", claims.version());
        }
        claims.claim(asked).map_err(|e| exec_datafusion_err!("claims: {e}"))
    }))
}

/// The same, where somebody else answers `claim_click`.
pub fn asking(ask: Ask) -> Vec<ScalarUDF> {
    vec![
        ScalarUDF::from(Tumble::new()),
        ScalarUDF::from(OfUserAgent::new("device_class", |agent| Some(udfs::device_class(agent)))),
        ScalarUDF::from(OfUserAgent::new("bot_reason", udfs::bot_reason)),
        ScalarUDF::from(ClaimClick::new(ask)),
    ]
}

/// Type of the column that `tumble` makes.
pub fn window_type() -> DataType {
    let time = DataType::Timestamp(TimeUnit::Nanosecond, None);
    DataType::Struct(Fields::from(vec![Field::new("start", time.clone(), false), Field::new("end", time, false)]))
}

/// `tumble(INTERVAL '1 minute')` in a GROUP BY. It is never called: the planner turns it into a tumbling window.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Tumble {
    signature: Signature,
}

impl Tumble {
    fn new() -> Self {
        // Volatile keeps the planner from folding it into a constant.
        Tumble { signature: Signature::any(1, Volatility::Volatile) }
    }
}

impl ScalarUDFImpl for Tumble {
    fn name(&self) -> &str {
        "tumble"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(window_type())
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        exec_err!("tumble stands in GROUP BY only")
    }
}

/// A function of the user agent alone. Few agents make most of the clicks, so answers are remembered.
struct OfUserAgent {
    name: &'static str,
    signature: Signature,
    function: fn(Option<&str>) -> Option<String>,
    answers: Mutex<HashMap<String, Option<String>>>,
}

impl OfUserAgent {
    /// Agents remembered at most; at about 200 bytes each this is a few megabytes.
    const ANSWERS_MAX: usize = 20_000;

    fn new(name: &'static str, function: fn(Option<&str>) -> Option<String>) -> Self {
        let signature = Signature::exact(vec![DataType::Utf8], Volatility::Immutable);
        OfUserAgent { name, signature, function, answers: Mutex::default() }
    }
}

impl std::fmt::Debug for OfUserAgent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

impl PartialEq for OfUserAgent {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for OfUserAgent {}

impl Hash for OfUserAgent {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl ScalarUDFImpl for OfUserAgent {
    fn name(&self) -> &str {
        self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Utf8)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let agents = args.args[0].to_array(args.number_rows)?;
        let agents = agents.as_string::<i32>();
        let mut answers = self.answers.lock().map_err(|_| exec_datafusion_err!("{} failed before", self.name))?;
        let mut column = StringBuilder::with_capacity(agents.len(), agents.len() * 8);
        for agent in agents {
            let Some(agent) = agent else {
                column.append_option((self.function)(None).as_deref());
                continue;
            };
            if let Some(answer) = answers.get(agent) {
                column.append_option(answer.as_deref());
                continue;
            }
            let answer = (self.function)(Some(agent));
            column.append_option(answer.as_deref());
            if answers.len() >= Self::ANSWERS_MAX {
                answers.clear();
            }
            answers.insert(agent.to_string(), answer);
        }
        Ok(ColumnarValue::Array(Arc::new(column.finish())))
    }
}

/// `claim_click(claim_key, log_id, partition, offset, appended_ms, version)`.
struct ClaimClick {
    signature: Signature,
    ask: Ask,
}

impl ClaimClick {
    fn new(ask: Ask) -> Self {
        use DataType::{Int32, Int64, Utf8};
        let exact = TypeSignature::Exact(vec![Utf8, Utf8, Int32, Int64, Int64, Int64]);
        // Volatile: it must be asked once a record, in order, never moved or shared by the planner.
        ClaimClick { signature: Signature::new(exact, Volatility::Volatile), ask }
    }
}

impl std::fmt::Debug for ClaimClick {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("claim_click")
    }
}

impl PartialEq for ClaimClick {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.ask, &other.ask)
    }
}

impl Eq for ClaimClick {}

impl Hash for ClaimClick {
    fn hash<H: Hasher>(&self, state: &mut H) {
        Arc::as_ptr(&self.ask).cast::<()>().hash(state);
    }
}

impl ScalarUDFImpl for ClaimClick {
    fn name(&self) -> &str {
        "claim_click"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Int64)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let columns: Result<Vec<ArrayRef>> = args.args.iter().map(|arg| arg.to_array(args.number_rows)).collect();
        let columns = columns?;
        let keys = columns[0].as_string::<i32>();
        let partitions = columns[2].as_primitive::<Int32Type>();
        let offsets = columns[3].as_primitive::<Int64Type>();
        let log_ids = columns[1].as_string::<i32>();
        let times = columns[4].as_primitive::<Int64Type>();
        let versions = columns[5].as_primitive::<Int64Type>();
        if columns[1..].iter().any(|column| column.null_count() > 0) {
            return exec_err!("of claim_click's arguments only the claim key may be NULL");
        }
        // One log and one version are all that a batch can be of.
        let (Some(log_id), Some(version)) = (log_ids.iter().flatten().next(), versions.values().first()) else {
            return Ok(ColumnarValue::Array(Arc::new(Int64Array::from(Vec::<Option<i64>>::new()))));
        };
        if log_ids.iter().flatten().any(|other| other != log_id) || versions.values().iter().any(|v| v != version) {
            return exec_err!("log id and version of claim_click must be the same for all records");
        }
        let log_id: LogId = log_id.parse().map_err(|e| exec_datafusion_err!("{e}"))?;
        let asked: Vec<Asked<'_>> = (0..args.number_rows)
            .map(|row| Asked {
                key: keys.is_valid(row).then(|| keys.value(row)),
                log_id,
                partition: partitions.value(row),
                offset: offsets.value(row),
                appended_at: Millis::new(times.value(row)),
            })
            .collect();
        let answers = (self.ask)(*version, &asked)?;
        Ok(ColumnarValue::Array(Arc::new(Int64Array::from(answers)) as ArrayRef))
    }
}
