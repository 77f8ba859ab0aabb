//! The graph that Arroyo planned. Its optimizer can lose an edge: validation passes, rows never come.

use crate::arroyo::Graph;

/// What is wrong with a graph: every node but a source needs an edge into it.
pub fn lost_edges(graph: &Graph) -> Vec<String> {
    let is_source = |description: &str| description.starts_with("KafkaSource<");
    let mut wrong = Vec::new();
    if !graph.nodes.iter().any(|node| is_source(&node.description)) {
        wrong.push("it has no source".to_string());
    }
    for node in &graph.nodes {
        if !is_source(&node.description) && !graph.edges.iter().any(|edge| edge.dest_id == node.node_id) {
            wrong.push(format!("nothing leads into node {} ({}: {})", node.node_id, node.operator, node.description));
        }
    }
    wrong
}
