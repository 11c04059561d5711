//! What the server is and whether shipping to it can be exact: version, tables, columns, deduplication windows.
use crate::ShipperSettings;
use crate::schema::{self, Flavour, SHARES, TABLES, identifier, literal};
use crate::sink::{Sink, SinkError};
use std::collections::{BTreeMap, BTreeSet};

/// First version whose inserts can be exactly once: tokens for plain MergeTree, tokens carried through views, Native integers widened on their way in.
pub const MODERN_FROM: (u32, u32) = (24, 8);

/// How a lost answer is cleared up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Method {
    /// The server recognises the insert by its token: send it again.
    Tokens,
    /// It does not: wait until the query has gone from system.processes, then count its rows.
    QueryIds,
}

/// What the probe found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Server {
    /// `SELECT version()`.
    pub version: String,
    /// By its version.
    pub method: Method,
    /// The table that segments go to: `shares`, or `shares_local` in a cluster.
    pub shares: &'static str,
    /// True when that table is replicated.
    pub replicated: bool,
    /// Version of its schema, migrated where that was allowed.
    pub schema: u32,
}

const SHARES_LOCAL: &str = "shares_local";
/// Inserts that a table must remember at the least: eight in flight of each of a hundred servers of a pool, and as many that came while one of them looked for its answer.
const WINDOW_MIN: u64 = 1000;
/// ILLEGAL_COLUMN, as a server answers to a column that is there already.
const COLUMN_EXISTS: u32 = 44;

/// Parses `26.7.2.1` or `18.16.1`.
pub fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim().split('.').map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Some((major, minor)),
        _ => None,
    }
}

fn rows<const N: usize>(text: &str) -> impl Iterator<Item = [&str; N]> {
    text.lines().filter_map(|line| {
        let mut fields = line.split('\t');
        let row = std::array::from_fn(|_| fields.next());
        row.iter().all(Option::is_some).then(|| row.map(Option::unwrap_or_default))
    })
}

/// Asks version and tables, makes the tables if they are missing and `create_tables` allows it, and checks them.
///
/// # Errors
/// `SinkError::Mismatch` with an explanation when shipping here could not be exact; else what the transport says.
pub async fn probe<S: Sink>(sink: &S, settings: &ShipperSettings) -> Result<Server, SinkError> {
    let version = sink.query("SELECT version()").await?.trim().to_owned();
    let number = parse_version(&version)
        .ok_or_else(|| SinkError::Mismatch(format!("{} answers SELECT version() with {version:?}: is it ClickHouse?", settings.url)))?;
    let method = if number >= MODERN_FROM { Method::Tokens } else { Method::QueryIds };
    let mut tables = tables(sink, settings).await?;
    if settings.create_tables {
        // A server that was killed while they were made has the first of them alone, roll-ups being last: each is looked for by its name.
        let is_new = !tables.contains_key(SHARES.name) && !tables.contains_key(SHARES_LOCAL);
        let statements = schema::ddl(&flavour_of(&tables, method), &settings.database, settings.keep_days);
        let mut made = 0;
        for statement in &statements {
            if is_new || created(statement).is_some_and(|name| holds_rows(statement) && !tables.contains_key(name)) {
                sink.query(statement).await?;
                made += 1;
            }
        }
        if made > 0 {
            tables = self::tables(sink, settings).await?;
        }
    }
    if let Some(table) = missing(&tables).first() {
        return Err(SinkError::Mismatch(if settings.create_tables {
            format!("database {} still lacks {table} after its DDL was run", settings.database)
        } else {
            format!(
                "database {} lacks {}; run `otedama schema{} | clickhouse-client -mn`, or set [clickhouse] create_tables = true",
                settings.database,
                missing(&tables).join(", "),
                if method == Method::Tokens { "" } else { " --legacy" }
            )
        }));
    }
    let flavour = flavour_of(&tables, method);
    let mut schema = schema_version(sink, settings, &tables).await?;
    if settings.create_tables {
        for statement in schema::migration(&flavour, &settings.database, schema) {
            match sink.query(&statement).await {
                // 18.16 cannot be told to add a column only where it is missing: an earlier try came so far.
                Err(SinkError::Refused { code: COLUMN_EXISTS, .. }) if statement.contains(" ADD COLUMN ") => {}
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        schema = schema.max(schema::VERSION);
        match word_comments(sink, settings, &flavour).await {
            // A user who may not is no reason to stop.
            Ok(()) | Err(SinkError::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let shares = if tables.contains_key(SHARES_LOCAL) { SHARES_LOCAL } else { SHARES.name };
    check_columns(sink, settings, shares, schema).await?;
    if method == Method::Tokens {
        check_windows(sink, settings, shares).await?;
    }
    // A replica may lag behind the one that acknowledged, and the others have what one of them loses.
    let replicated = tables.get(shares).is_some_and(|engine| engine.starts_with("Replicated") || engine.starts_with("Shared"));
    Ok(Server { version, method, shares, replicated, schema })
}

/// What the tables that are there, if any, were made for.
fn flavour_of(tables: &BTreeMap<String, String>, method: Method) -> Flavour {
    // Distributed('farm', 'otedama', 'shares_local', ...)
    let cluster = tables
        .get(SHARES.name)
        .and_then(|engine| unescaped(engine).strip_prefix("Distributed(").map(str::to_owned))
        .and_then(|arguments| Some(arguments.split([',', ')']).next()?.trim().trim_matches(['\'', '`', '"']).to_owned()));
    match (method, cluster) {
        (Method::Tokens, Some(cluster)) if tables.contains_key(SHARES_LOCAL) => Flavour::Cluster(cluster),
        (Method::Tokens, _) => Flavour::Single,
        (Method::QueryIds, _) => Flavour::Legacy,
    }
}

/// Version of the schema that the database has: what its view says, or 1, which had none.
async fn schema_version<S: Sink>(sink: &S, settings: &ShipperSettings, tables: &BTreeMap<String, String>) -> Result<u32, SinkError> {
    if !tables.contains_key(schema::VERSION_VIEW) {
        return Ok(1);
    }
    let view = format!("{}.{}", identifier(&settings.database), identifier(schema::VERSION_VIEW));
    let text = sink.query(&format!("SELECT max(version) FROM {view} FORMAT TabSeparated")).await?;
    text.trim().parse().map_err(|_| SinkError::Mismatch(format!("{view} answers {text:?} where the version of the schema should stand")))
}

/// Puts the comments of columns into the words of this release, where they differ.
async fn word_comments<S: Sink>(sink: &S, settings: &ShipperSettings, flavour: &Flavour) -> Result<(), SinkError> {
    let database = &settings.database;
    let sql = format!("SELECT table, name, comment FROM system.columns WHERE database = {} FORMAT TabSeparated", literal(database));
    let text = sink.query(&sql).await?;
    let found: BTreeMap<(&str, &str), &str> = rows::<3>(&text).map(|[table, name, comment]| ((table, name), comment)).collect();
    for (table, column, comment) in schema::comments(flavour) {
        if found.get(&(table.as_str(), column)).is_some_and(|found| unescaped(found) != comment) {
            sink.query(&schema::comment_sql(flavour, database, &table, column, comment)).await?;
        }
    }
    Ok(())
}

/// Engine with its arguments by table name.
async fn tables<S: Sink>(sink: &S, settings: &ShipperSettings) -> Result<BTreeMap<String, String>, SinkError> {
    let sql = format!("SELECT name, engine_full FROM system.tables WHERE database = {} FORMAT TabSeparated", literal(&settings.database));
    let text = sink.query(&sql).await?;
    Ok(rows::<2>(&text).map(|[name, engine]| (name.to_owned(), engine.to_owned())).collect())
}

/// The name, without its database, that a statement of the DDL makes.
fn created(statement: &str) -> Option<&str> {
    let name = statement.split_once(" IF NOT EXISTS ")?.1.split_whitespace().next()?;
    Some(name.rsplit_once('.')?.1.trim_matches('`'))
}

/// True for tables and what feeds them; a plain view has its place in the migration, which makes it last.
fn holds_rows(statement: &str) -> bool {
    !statement.starts_with("CREATE VIEW ")
}

fn missing(tables: &BTreeMap<String, String>) -> Vec<&'static str> {
    TABLES.iter().map(|table| table.name).filter(|name| !tables.contains_key(*name)).collect()
}

async fn check_columns<S: Sink>(sink: &S, settings: &ShipperSettings, shares: &str, schema: u32) -> Result<(), SinkError> {
    let sql = format!("SELECT table, name, type FROM system.columns WHERE database = {} FORMAT TabSeparated", literal(&settings.database));
    let text = sink.query(&sql).await?;
    let found: BTreeMap<(&str, &str), &str> = rows::<3>(&text).map(|[table, name, kind]| ((table, name), kind)).collect();
    let mut wrong = Vec::new();
    for table in TABLES {
        let name = if table.name == SHARES.name { shares } else { table.name };
        for column in table.columns_at(schema) {
            match found.get(&(name, column.name)) {
                None => wrong.push(format!("{name} has no column {} {}", column.name, column.kind)),
                Some(kind) if !takes(kind, column.kind) => {
                    wrong.push(format!("{name}.{} is {}, not {}", column.name, unescaped(kind), column.kind));
                }
                Some(_) => {}
            }
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    Err(SinkError::Mismatch(format!(
        "the tables of database {} are not what this release ships: {}; compare with `otedama schema` (`--from N` prints what leads there from an older version), then ALTER or rename them",
        settings.database,
        wrong.join("; ")
    )))
}

/// TabSeparated escapes the quotes of types: `DateTime(\'UTC\')`.
fn unescaped(text: &str) -> String {
    text.replace("\\'", "'").replace("\\\\", "\\")
}

/// True when a column of type `found` takes what is sent as `wanted`. Enums may have grown; `work` may be any integer or decimal that holds it; codecs and zones are the user's.
fn takes(found: &str, wanted: &str) -> bool {
    let found = unescaped(found);
    if let Some(values) = wanted.strip_prefix("Enum8(").and_then(|rest| rest.strip_suffix(')')) {
        return found.starts_with("Enum") && values.split(", ").all(|value| found.contains(value));
    }
    if wanted.starts_with("DateTime") {
        return found == "DateTime" || found.starts_with("DateTime(");
    }
    match wanted {
        "WORK" => found.starts_with("Decimal(") || matches!(found.as_str(), "UInt64" | "UInt128" | "UInt256"),
        "String" => found == "String" || found == "LowCardinality(String)",
        _ => found == wanted,
    }
}

/// The base table and every table that a view on it fills, at any depth, must remember inserts: where one does not, a retry doubles it.
async fn check_windows<S: Sink>(sink: &S, settings: &ShipperSettings, shares: &str) -> Result<(), SinkError> {
    let sql = "SELECT database, name, engine_full, create_table_query, toString(uuid), arrayStringConcat(arrayMap((d, t) -> concat(d, '.', t), dependencies_database, dependencies_table), '|') \
               FROM system.tables WHERE engine LIKE '%MergeTree' OR engine = 'MaterializedView' FORMAT TabSeparated";
    let text = sink.query(sql).await?;
    let known: BTreeMap<String, [&str; 6]> = rows::<6>(&text).map(|row| (format!("{}.{}", row[0], row[1]), row)).collect();
    let base = format!("{}.{shares}", settings.database);
    let mut waiting = vec![(base.clone(), base.clone())];
    let mut seen = BTreeSet::new();
    let mut wrong = Vec::new();
    while let Some((table, filled_by)) = waiting.pop() {
        if !seen.insert(table.clone()) {
            continue;
        }
        let Some([_, _, engine, _, _, views]) = known.get(&table) else { continue };
        if !remembers(engine) {
            wrong.push(if table == filled_by { table.clone() } else { format!("{table} (filled by the view {filled_by})") });
        }
        for view in views.split('|').filter(|view| !view.is_empty()) {
            if let Some([database, name, _, create, uuid, _]) = known.get(view) {
                waiting.push((view_target(database, name, create, uuid), view.to_owned()));
            }
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    wrong.sort();
    Err(SinkError::Mismatch(format!(
        "no deduplication window of {WINDOW_MIN} or more on {}: a retried insert would be counted twice there; run ALTER TABLE ... MODIFY SETTING non_replicated_deduplication_window = {} on each",
        wrong.join(", "),
        schema::DEDUPLICATION_WINDOW
    )))
}

/// Where a materialized view writes: `TO database.table`, or a table of its own.
fn view_target(database: &str, name: &str, create: &str, uuid: &str) -> String {
    let before_select = create.split(" AS SELECT ").next().unwrap_or(create);
    match before_select.split_once(" TO ") {
        Some((_, target)) => target.split([' ', '(']).next().unwrap_or_default().replace('`', ""),
        None if uuid.trim_matches(['0', '-']).is_empty() => format!("{database}..inner.{name}"),
        None => format!("{database}..inner_id.{uuid}"),
    }
}

/// Replicated tables remember inserts unless told not to; plain ones only when told to. A short memory is none: what a retry repeats may have been pushed out of it.
fn remembers(engine: &str) -> bool {
    let setting = |name: &str| {
        engine.split_once(&format!(" {name} = ")).map(|(_, rest)| {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            rest[..digits].parse::<u64>().unwrap_or(0)
        })
    };
    if engine.starts_with("Replicated") || engine.starts_with("Shared") {
        setting("replicated_deduplication_window").is_none_or(|window| window >= WINDOW_MIN)
    } else {
        setting("non_replicated_deduplication_window").is_some_and(|window| window >= WINDOW_MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_parse_and_only_24_8_on_has_tokens() {
        assert_eq!(parse_version("18.16.1\n"), Some((18, 16)));
        assert_eq!(parse_version("26.7.2.1"), Some((26, 7)));
        for text in ["", "26", "PostgreSQL 15", "x.y"] {
            assert_eq!(parse_version(text), None, "{text}");
        }
        assert!((24, 8) >= MODERN_FROM && (24, 7) < MODERN_FROM && (18, 16) < MODERN_FROM && (25, 1) >= MODERN_FROM);
    }

    #[test]
    fn a_cluster_is_known_by_its_distributed_table() {
        let tables = |shares: &str, local: bool| {
            let mut tables = BTreeMap::from([("shares".to_owned(), shares.to_owned())]);
            if local {
                tables.insert(SHARES_LOCAL.to_owned(), "ReplicatedMergeTree".to_owned());
            }
            tables
        };
        let distributed = "Distributed(\\'farm\\', \\'otedama\\', \\'shares_local\\', cityHash64(worker))";
        assert_eq!(flavour_of(&tables(distributed, true), Method::Tokens), Flavour::Cluster("farm".into()));
        assert_eq!(flavour_of(&tables(distributed, false), Method::Tokens), Flavour::Single);
        assert_eq!(flavour_of(&tables("MergeTree", false), Method::Tokens), Flavour::Single);
        assert_eq!(flavour_of(&BTreeMap::new(), Method::QueryIds), Flavour::Legacy);
    }

    #[test]
    fn view_targets_are_found_with_and_without_to() {
        let create = "CREATE MATERIALIZED VIEW otedama.v TO `otedama`.pool_minute (`minute` DateTime) AS SELECT 1 TO 2";
        assert_eq!(view_target("otedama", "v", create, ""), "otedama.pool_minute");
        let own = "CREATE MATERIALIZED VIEW otedama.v (`minute` DateTime) ENGINE = SummingMergeTree AS SELECT ' TO x.y'";
        assert_eq!(view_target("otedama", "v", own, "00000000-0000-0000-0000-000000000000"), "otedama..inner.v");
        assert_eq!(view_target("otedama", "v", own, "5f1c-1"), "otedama..inner_id.5f1c-1");
    }

    #[test]
    fn a_window_of_nothing_is_no_window() {
        assert!(remembers("MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 100000, index_granularity = 8192"));
        assert!(!remembers("MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 0, index_granularity = 8192"));
        assert!(!remembers("MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 999, index_granularity = 8192"));
        assert!(remembers("MergeTree ORDER BY a SETTINGS non_replicated_deduplication_window = 1000"));
        assert!(!remembers("MergeTree ORDER BY a SETTINGS index_granularity = 8192"));
        assert!(remembers("ReplicatedMergeTree('/a', 'b') ORDER BY a SETTINGS index_granularity = 8192"));
        assert!(!remembers("ReplicatedMergeTree('/a', 'b') ORDER BY a SETTINGS replicated_deduplication_window = 0"));
        assert!(!remembers("ReplicatedMergeTree('/a', 'b') ORDER BY a SETTINGS replicated_deduplication_window = 7"));
    }

    #[test]
    fn columns_may_grow_but_not_change() {
        assert!(takes("Enum8(\\'bitcoin\\' = 0, \\'other\\' = 1)", schema::COIN_TYPE));
        assert!(!takes("Enum8(\\'other\\' = 0)", schema::COIN_TYPE));
        assert!(takes("DateTime(\\'UTC\\')", "DateTime('UTC')") && takes("DateTime", "DateTime('UTC')"));
        assert!(!takes("DateTime64(6, \\'UTC\\')", "DateTime('UTC')"));
        assert!(takes("Decimal(38, 0)", "WORK") && takes("UInt128", "WORK") && !takes("Float64", "WORK"));
        assert!(!takes("UInt32", "UInt64"));
    }
}
