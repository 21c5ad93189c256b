// One answer after the other by an unmodified @huggingface/transformers, for peers.py, which copies this file beside
// its node_modules:
//
//   node peers.mjs FOLDER THREADS IMAGE QUESTION
//
// Each line of standard input is a number of tokens; each line of standard output a JSON document with seconds.
import fs from 'node:fs';
import path from 'node:path';
import readline from 'node:readline';
import { AutoModelForImageTextToText, AutoProcessor, BaseStreamer, RawImage, env } from '@huggingface/transformers';

const [folder, threads, file, question] = process.argv.slice(2);
env.allowRemoteModels = false;
env.localModelPath = path.dirname(folder);
const name = path.basename(folder);
const session_options = { intraOpNumThreads: Number(threads), interOpNumThreads: 1 };
const model = await AutoModelForImageTextToText.from_pretrained(name, { session_options });
const processor = await AutoProcessor.from_pretrained(name);
const image = await RawImage.read(file);
const content = [{ type: 'image' }, { type: 'text', text: question }];

class Clock extends BaseStreamer {
    put() {
        this.puts = (this.puts ?? 0) + 1; // the first one is the prompt
        if (this.puts === 2) this.first = performance.now();
    }
    end() {}
}

function peakBytes() {
    return 1024 * Number(/VmHWM:\s+(\d+)/.exec(fs.readFileSync('/proc/self/status', 'utf8'))[1]);
}

for await (const line of readline.createInterface({ input: process.stdin })) {
    const n = Number(line);
    const started = performance.now();
    const text = processor.apply_chat_template([{ role: 'user', content }], { add_generation_prompt: true });
    const inputs = await processor(text, [image]);
    const streamer = new Clock();
    const options = { max_new_tokens: n, min_new_tokens: n, do_sample: false, streamer };
    const tokens = await model.generate({ ...inputs, ...options });
    const ended = performance.now();
    const made = tokens.dims[1] - inputs.input_ids.dims[1];
    const tiles = inputs.pixel_values.dims[1];
    const seconds = { total_s: (ended - started) / 1000, ttft_s: (streamer.first - started) / 1000 };
    console.log(JSON.stringify({ ...seconds, n_tokens: made, tiles, peak_bytes: peakBytes() }));
}
