// Times of an unmodified @huggingface/transformers on one exported folder: a line {"n": tokens} comes in, one goes out.
//
//   node runtime.mjs JOB.json           (runtime.py copies this file beside node_modules)
//
// JOB: {models, name, feed: {input name: {type, dims, file}}, threads}. A reply is {"seconds": of one generate()}.
import fs from 'node:fs';
import readline from 'node:readline';
import { AutoModelForImageTextToText, Tensor, env } from '@huggingface/transformers';

const ARRAYS = { float32: Float32Array, int64: BigInt64Array, bool: Uint8Array };

function tensor({ type, dims, file }) {
    const bytes = fs.readFileSync(file);
    const buffer = bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
    return new Tensor(type, new ARRAYS[type](buffer), dims);
}

const job = JSON.parse(fs.readFileSync(process.argv[2], 'utf8'));
env.allowRemoteModels = false;
env.localModelPath = job.models;
const threads = { intraOpNumThreads: job.threads, interOpNumThreads: 1 };
const model = await AutoModelForImageTextToText.from_pretrained(job.name, { session_options: threads });
const feed = Object.fromEntries(Object.entries(job.feed).map(([name, value]) => [name, tensor(value)]));
console.log(JSON.stringify({ ready: true }));
for await (const line of readline.createInterface({ input: process.stdin })) {
    const { n } = JSON.parse(line);
    const started = performance.now();
    await model.generate({ ...feed, max_new_tokens: n, min_new_tokens: n, do_sample: false });
    console.log(JSON.stringify({ seconds: (performance.now() - started) / 1000 }));
}
