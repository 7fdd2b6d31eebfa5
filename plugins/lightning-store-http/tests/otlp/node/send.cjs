// Sends spans with the real OpenTelemetry SDK for Node, configured by the standard environment variables alone.
// Usage: node send.cjs json|protobuf    Prints the ids of the spans as JSON.
"use strict";

const { SpanKind, SpanStatusCode, context, trace } = require("@opentelemetry/api");
const { detectResources, envDetector } = require("@opentelemetry/resources");
const { BatchSpanProcessor, NodeTracerProvider } = require("@opentelemetry/sdk-trace-node");

const { OTLPTraceExporter } = require(
  process.argv[2] === "json"
    ? "@opentelemetry/exporter-trace-otlp-http"
    : "@opentelemetry/exporter-trace-otlp-proto",
);

async function main() {
  const provider = new NodeTracerProvider({
    resource: detectResources({ detectors: [envDetector] }),
    spanProcessors: [new BatchSpanProcessor(new OTLPTraceExporter())],
  });
  const agent = provider.getTracer("agent", "1.2.3");
  const client = provider.getTracer("client");

  const root = agent.startSpan("root", { attributes: { text: "é", number: 3, float: 0.5, flag: true } });
  const inside = trace.setSpan(context.active(), root);
  const child = client.startSpan(
    "child",
    {
      kind: SpanKind.CLIENT,
      attributes: { list: ["a", "b"], numbers: [1, 2], half: "\ud83d" },
      links: [{ context: root.spanContext(), attributes: { why: "test" } }],
    },
    inside,
  );
  child.addEvent("token", { index: 1 });
  child.setStatus({ code: SpanStatusCode.ERROR, message: "it broke" });
  child.end();
  root.end();
  await provider.forceFlush();
  await provider.shutdown();
  const ids = [child, root].map((span) => span.spanContext());
  console.log(JSON.stringify(ids.map(({ traceId, spanId }) => ({ traceId, spanId }))));
}

main().catch((error) => {
  console.error(error);
  process.exitCode = 1;
});
