"""The MCP server: the same index as tools for agents. It has no tools yet."""
