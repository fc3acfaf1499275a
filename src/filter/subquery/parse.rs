//! From the tree of the grammar to a tree of conditions and memberships.

use std::collections::BTreeMap;
use std::sync::Arc;

use rupg_sql::nodes::{
    BoolExpr, BoolExprType, List, Node, RangeVar, SelectStmt, SetOperation, SubLink, SubLinkType,
};

use super::super::check::{Checker, strings};
use super::super::error::WhereError;
use super::super::expr::Expr;
use super::super::print::print;
use super::super::resolve::Item;
use super::super::types::Type;
use super::tags::has_canonical_text;
use super::{ClauseError, LeftColumn, Relations, TableTexts, dnf};
use crate::domain::{LogMode, Relation, RelationName, Replica, ShapeDefinition, quote_identifier};

const ONE_TABLE: WhereError = WhereError::Inner("Expected a single table reference");
const NO_CLAUSES: WhereError = WhereError::Inner("SELECT statement must not contain any clauses");
/// Longest list of inner queries in one clause, equal ones counted once.
const DEPENDENCIES_MAX: usize = 64;

/// A clause, parsed.
pub(super) struct Parsed {
    pub tree: Tree,
    pub columns: Vec<String>,
    pub dependencies: Vec<ShapeDefinition>,
    /// The tables whose texts are compared somewhere.
    pub compared: Vec<RelationName>,
}

/// Conditions and memberships.
#[derive(Clone, Debug)]
pub(super) enum Tree {
    And(Vec<Tree>),
    Or(Vec<Tree>),
    Not(Box<Tree>),
    Leaf(Expr),
    Member(Member),
}

/// `left IN (inner query)`.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub left: Vec<LeftColumn>,
    pub dependency: usize,
}

pub(super) struct Parser<'a> {
    pub params: &'a BTreeMap<u32, String>,
    pub inner: &'a Relations,
    /// Of tables that are missing, the default.
    pub texts: &'a TableTexts,
    /// Reading our own canonical SQL.
    pub canonical: bool,
}

impl Parser<'_> {
    pub fn clause(&self, node: &Node, relation: &Relation) -> Result<Parsed, ClauseError> {
        let checker = Checker::new(relation, self.params, self.canonical);
        let mut walk = Walk {
            parser: self,
            relation,
            checker: match self.texts.get(&relation.name) {
                Some(texts) => checker.with_texts(*texts),
                None => checker,
            },
            dependencies: Vec::new(),
            compared: Vec::new(),
        };
        let tree = walk.tree(node)?;
        let Walk { checker, dependencies, mut compared, .. } = walk;
        if checker.resolver.by_collation {
            compared.push(relation.name.clone());
        }
        Ok(Parsed { tree, columns: checker.into_columns(), dependencies, compared })
    }

    /// An inner query as a shape of its own; with it, the tables whose texts it compares.
    fn query(&self, select: &SelectStmt) -> Result<(ShapeDefinition, Vec<RelationName>), ClauseError> {
        let selects = select_list(select)?;
        let name = only_table(select)?;
        let relation = self.inner.get(&name).ok_or_else(|| no_such_table(&name))?.clone();
        let of_columns = |message: String| ClauseError { field: "columns", message };
        let lacking = |wanted: &dyn Fn(&str) -> bool| {
            let found: Vec<&str> = selects.iter().map(String::as_str).filter(|name| wanted(name)).collect();
            (!found.is_empty()).then(|| found.join(", "))
        };
        if let Some(unknown) = lacking(&|name| relation.column(name).is_none()) {
            return Err(of_columns(format!("The following columns are not found on the table: {unknown}")));
        }
        if let Some(generated) = lacking(&|name| relation.column(name).is_some_and(|column| column.generated))
        {
            let message = "The following columns are generated and cannot be included in the shape: ";
            return Err(of_columns(format!("{message}{generated}")));
        }
        let parsed = match &select.whereClause {
            Some(clause) => Some(self.clause(clause, &relation)?),
            None => None,
        };
        if let Some(parsed) = &parsed {
            // What is wrong with its normal form is told now: it is a shape of its own, and made later.
            dnf::literals(&parsed.tree, &parsed.dependencies)?;
        }
        let where_sql = parsed.as_ref().map(|parsed| {
            let mut sql = String::new();
            parsed.tree.print(&parsed.dependencies, &mut sql);
            sql
        });
        let mut columns = selects.clone();
        columns.extend(relation.key_columns().into_iter().map(|column| column.name.clone()));
        columns.sort_unstable();
        columns.dedup();
        let (dependencies, mut compared) =
            parsed.map(|parsed| (parsed.dependencies, parsed.compared)).unwrap_or_default();
        if self.gives_text(&relation, &selects)? {
            compared.push(name);
        }
        let definition = ShapeDefinition {
            relation: Arc::new(relation),
            where_sql,
            columns,
            columns_named: true,
            replica: Replica::Default,
            log: LogMode::Full,
            dependencies,
            selects,
        };
        Ok((definition, compared))
    }

    /// Whether there is a text among what an inner query gives: those are compared by their bytes.
    fn gives_text(&self, relation: &Relation, selects: &[String]) -> Result<bool, ClauseError> {
        let columns = selects.iter().filter_map(|name| relation.column(name));
        let text = columns.map(Type::of_column).any(|ty| ty.element().unwrap_or(&ty).is_text());
        match self.texts.get(&relation.name) {
            Some(texts) if text && texts.opaque => Err(ClauseError {
                field: "where",
                message: format!(
                    "texts of this collation or encoding are not supported in a subquery on {}",
                    relation.name.to_sql()
                ),
            }),
            _ => Ok(text),
        }
    }
}

struct Walk<'a> {
    parser: &'a Parser<'a>,
    relation: &'a Relation,
    checker: Checker<'a>,
    dependencies: Vec<ShapeDefinition>,
    compared: Vec<RelationName>,
}

impl Walk<'_> {
    fn tree(&mut self, node: &Node) -> Result<Tree, ClauseError> {
        match node {
            Node::BoolExpr(expr) => self.chain(expr),
            Node::SubLink(link) => self.member(link).map(Tree::Member),
            node => {
                let item = self.checker.node(node)?;
                Ok(Tree::Leaf(self.checker.resolver.condition(item)?))
            }
        }
    }

    fn chain(&mut self, expr: &BoolExpr) -> Result<Tree, ClauseError> {
        let mut args = Vec::with_capacity(expr.args.len());
        for node in expr.args.iter().flatten() {
            // Nested chains of one kind are one chain, as the grammar has it without parentheses.
            match (expr.boolop, self.tree(node)?) {
                (BoolExprType::AND_EXPR, Tree::And(inner)) | (BoolExprType::OR_EXPR, Tree::Or(inner)) => {
                    args.extend(inner);
                }
                (_, arg) => args.push(arg),
            }
        }
        Ok(match expr.boolop {
            BoolExprType::AND_EXPR => Tree::And(args),
            BoolExprType::OR_EXPR => Tree::Or(args),
            _ => {
                let arg =
                    args.pop().ok_or_else(|| WhereError::at(expr.location, "expression is incomplete"))?;
                Tree::Not(Box::new(arg))
            }
        })
    }

    fn member(&mut self, link: &SubLink) -> Result<Member, ClauseError> {
        let Some(Node::SelectStmt(select)) = &link.subselect else {
            return Err(WhereError::at(link.location, "expression is incomplete").into());
        };
        // The inner query is complained about first: contract 2.9.
        select_list(select)?;
        only_table(select)?;
        if link.subLinkType != SubLinkType::ANY_SUBLINK || !link.operName.is_empty() {
            let message = "only `value IN (SELECT ...)` sublinks are supported right now";
            return Err(WhereError::at(link.location, message).into());
        }
        let left = self.left(link)?;
        let (query, compared) = self.parser.query(select)?;
        self.compared.extend(compared);
        let returned: Vec<Type> = query
            .selects
            .iter()
            .filter_map(|name| query.relation.column(name))
            .map(Type::of_column)
            .collect();
        let asked: Vec<&Type> = left.iter().map(|column| &column.ty).collect();
        if !asked.iter().copied().eq(&returned) {
            let message = format!(
                "left side of `IN (SELECT ...)` has type {} but subquery returns {}[]",
                shown(asked.iter().copied()),
                shown(returned.iter())
            );
            return Err(WhereError::at(link.location, message).into());
        }
        if !returned.iter().all(has_canonical_text) {
            return Err(WhereError::at(link.location, "Could not select an operator overload").into());
        }
        Ok(Member { left, dependency: self.dependency(query, link.location)? })
    }

    fn dependency(&mut self, query: ShapeDefinition, location: i32) -> Result<usize, ClauseError> {
        if let Some(known) = self.dependencies.iter().position(|known| known.same_shape(&query)) {
            return Ok(known);
        }
        if self.dependencies.len() >= DEPENDENCIES_MAX {
            let message = format!("more than {DEPENDENCIES_MAX} subqueries in one clause");
            return Err(WhereError::at(location, message).into());
        }
        self.dependencies.push(query);
        Ok(self.dependencies.len() - 1)
    }

    fn left(&mut self, link: &SubLink) -> Result<Vec<LeftColumn>, ClauseError> {
        let refused = || {
            let message = "currently, left side of `IN (SELECT ...)` can only be a column reference or a list of \
                           column references";
            ClauseError::from(WhereError::at(link.location, message))
        };
        let nodes: Vec<&Node> = match &link.testexpr {
            Some(Node::RowExpr(row)) => row.args.iter().flatten().collect(),
            Some(node) => vec![node],
            None => Vec::new(),
        };
        let mut left = Vec::with_capacity(nodes.len());
        for node in nodes {
            let Node::ColumnRef(_) = node else { return Err(refused()) };
            match self.checker.node(node)? {
                Item::Typed { expr: Expr::Column { slot, name, .. }, .. } => {
                    let column = self.relation.column(&name).ok_or_else(refused)?;
                    left.push(LeftColumn { slot, name, ty: Type::of_column(column) });
                }
                _ => return Err(refused()),
            }
        }
        if left.is_empty() { Err(refused()) } else { Ok(left) }
    }
}

impl Tree {
    /// Canonical SQL.
    pub fn print(&self, dependencies: &[ShapeDefinition], sql: &mut String) {
        let list = |args: &[Tree], separator: &str, sql: &mut String| {
            for (index, arg) in args.iter().enumerate() {
                sql.push_str(if index == 0 { "(" } else { separator });
                arg.print(dependencies, sql);
            }
            sql.push(')');
        };
        match self {
            Tree::And(args) => list(args, " AND ", sql),
            Tree::Or(args) => list(args, " OR ", sql),
            Tree::Not(arg) => {
                sql.push_str("(NOT ");
                arg.print(dependencies, sql);
                sql.push(')');
            }
            Tree::Leaf(expr) => print(expr, sql),
            Tree::Member(member) => member.print(dependencies, sql),
        }
    }
}

impl Member {
    pub fn print(&self, dependencies: &[ShapeDefinition], sql: &mut String) {
        let query = &dependencies[self.dependency];
        let names = |names: &mut dyn Iterator<Item = &String>| {
            names.map(|name| quote_identifier(name)).collect::<Vec<_>>().join(", ")
        };
        let left = names(&mut self.left.iter().map(|column| &column.name));
        sql.push_str(&if self.left.len() == 1 { format!("({left}") } else { format!("(({left})") });
        let selected = names(&mut query.selects.iter());
        sql.push_str(&format!(" IN (SELECT {selected} FROM {}", query.relation.name.to_sql()));
        if let Some(condition) = &query.where_sql {
            sql.push_str(" WHERE ");
            sql.push_str(condition);
        }
        sql.push_str("))");
    }
}

/// The tables of all inner queries in a clause, in the order of their appearance.
pub(super) fn tables(node: &Node) -> Result<Vec<RelationName>, ClauseError> {
    let mut found = Vec::new();
    collect_tables(node, &mut found)?;
    Ok(found)
}

fn collect_tables(node: &Node, found: &mut Vec<RelationName>) -> Result<(), ClauseError> {
    match node {
        Node::BoolExpr(expr) => expr.args.iter().flatten().try_for_each(|arg| collect_tables(arg, found)),
        Node::SubLink(link) => {
            let Some(Node::SelectStmt(select)) = &link.subselect else { return Ok(()) };
            select_list(select)?;
            found.push(only_table(select)?);
            select.whereClause.as_ref().map_or(Ok(()), |clause| collect_tables(clause, found))
        }
        // Anywhere else an inner query is refused by the check.
        _ => Ok(()),
    }
}

fn select_list(select: &SelectStmt) -> Result<Vec<String>, WhereError> {
    if select.op != SetOperation::SETOP_NONE || !select.valuesLists.is_empty() {
        return Err(NO_CLAUSES);
    }
    let column = |node: &Option<Node>| {
        let Some(Node::ResTarget(target)) = node else { return Err(0) };
        match &target.val {
            Some(Node::ColumnRef(column)) => match strings(&column.fields)[..] {
                [name] if column.fields.len() == 1 => Ok(name.to_owned()),
                _ => Err(column.location),
            },
            _ => Err(target.location),
        }
    };
    select.targetList.iter().map(column).collect::<Result<Vec<_>, i32>>().map_err(|offset| {
        // Counted from the start of the statement, unlike all others: contract 2.9.
        let location = usize::try_from(offset).unwrap_or(0);
        WhereError::Located { location, message: "Expected a plain column reference".to_owned() }
    })
}

fn only_table(select: &SelectStmt) -> Result<RelationName, WhereError> {
    let bare = select.distinctClause.is_empty()
        && select.intoClause.is_none()
        && select.groupClause.is_empty()
        && select.havingClause.is_none()
        && select.windowClause.is_empty()
        && select.sortClause.is_empty()
        && select.limitOffset.is_none()
        && select.limitCount.is_none()
        && select.lockingClause.is_empty()
        && select.withClause.is_none();
    let table = single(&select.fromClause).ok_or(ONE_TABLE)?;
    if !bare {
        return Err(NO_CLAUSES);
    }
    let renamed = table.alias.as_ref().is_some_and(|alias| !alias.colnames.is_empty());
    if table.catalogname.is_some() || !table.inh || renamed {
        return Err(ONE_TABLE);
    }
    let name = |part: &Option<rupg_sql::nodes::Str>| part.as_ref().map(|text| text.to_string());
    Ok(RelationName {
        schema: name(&table.schemaname).unwrap_or_else(|| "public".to_owned()),
        table: name(&table.relname).ok_or(ONE_TABLE)?,
    })
}

fn single(from: &List) -> Option<&RangeVar> {
    let mut nodes = from.iter().flatten();
    match (nodes.next(), nodes.next()) {
        (Some(Node::RangeVar(table)), None) => Some(table),
        _ => None,
    }
}

fn no_such_table(name: &RelationName) -> ClauseError {
    let message = format!(
        "Table {} does not exist. If the table name contains capitals or special characters you must quote it.",
        name.to_sql()
    );
    ClauseError { field: "table", message }
}

fn shown<'t>(types: impl ExactSizeIterator<Item = &'t Type>) -> String {
    let row = types.len() != 1;
    let list = types.map(Type::to_string).collect::<Vec<_>>().join(", ");
    if row { format!("({list})") } else { list }
}
